"""The commands of the stream: services, topics, and what is done with them from a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    NamedPath,
    config_option,
    faults_in_one_line,
    tracks_options,
)
from streamproc.files import on_one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from streamproc.events import DuplicateCandidate, VideoProgress
    from streamproc.kafka.client import DeadLetter
    from streamproc.settings import Settings

Command = Any  # click's decorators lose the function's type


def common_options(function: Command) -> Command:
    """Add the options of every command that reads the settings of the stream."""
    media_root = click.option(
        "--media-root", help="Folder that relative URIs refer to. [default: media]"
    )
    bootstrap = click.option(
        "--bootstrap", help="Kafka's HOST:PORT, several with commas. [default: 127.0.0.1:9092]"
    )
    return bootstrap(media_root(config_option(function)))


def settings_of(options: dict[str, Any], **flags: object) -> Settings:
    """Take the options of `common_options` out of `options`, and load the settings with all flags.

    `flags` are settings keys, dotted or with two underscores for a dot.
    """
    from streamproc.settings import load_settings

    all_flags = {key.replace("__", "."): value for key, value in flags.items()}
    all_flags["bootstrap"] = options.pop("bootstrap")
    all_flags["media_root"] = options.pop("media_root")
    return load_settings(all_flags, config_file=options.pop("config"))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end; Ctrl-C ends it with an exit code of its own and no traceback."""
    import asyncio
    import logging

    # aiokafka reports a broker that is away many times; the command does so once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        with faults_in_one_line():
            return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def run_service(
    options: dict[str, Any], work: Callable[[Settings], Coroutine[Any, Any, None]], **flags: object
) -> None:
    """Run a service until it is stopped, with the options of its command."""
    with faults_in_one_line():
        settings = settings_of(options, **flags)
    os.umask(settings.umask_bits())
    run(work(settings))


@click.group(epilog=EXIT_CODES)
def topics() -> None:
    """Create the topics, or check those that exist."""


@topics.command("create")
@common_options
def topics_create(**options: Any) -> None:
    """Create the topics that are missing, print their names, and check all."""
    from streamproc.kafka.topics import check_topics, create_topics

    with faults_in_one_line():
        settings = settings_of(options)
    for name in run(create_topics(settings)):
        click.echo(name)
    run(check_topics(settings))


@topics.command("check")
@common_options
def topics_check(**options: Any) -> None:
    """Check that all topics exist with the right number of partitions; creates nothing."""
    from streamproc.kafka.topics import check_topics

    with faults_in_one_line():
        settings = settings_of(options)
    for spec in run(check_topics(settings)):
        click.echo(f"{spec.name}\t{spec.partitions}")


@click.command(epilog=EXIT_CODES)
@common_options
@click.option(
    "--weights",
    help="OSNet weights: .onnx, .pth, .pt or .safetensors. [default: the package's own]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the network runs. [default: auto]",
)
@click.option(
    "--http-port", type=click.IntRange(0, 65535), help="Health and metrics; 0: any. [default: 8081]"
)
def worker(**options: Any) -> None:
    """Run a worker: videos in, one embedding a person out."""
    from streamproc.services.worker import run_worker

    flags = {
        "clustering.osnet_model": options.pop("weights"),
        "clustering.device": options.pop("device"),
    }
    run_service(options, run_worker, **flags, service__http_port=options.pop("http_port"))


@click.command(epilog=EXIT_CODES)
@common_options
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Health, metrics, galleries; 0: any. [default: 8082]",
)
def matcher(**options: Any) -> None:
    """Run a matcher: embeddings in, duplicate candidates out."""
    # Before numpy is loaded. The product of one gallery is too small to share: waiting for another
    # core would take longer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from streamproc.services.matcher.matcher import run_matcher

    run_service(options, run_matcher, service__http_port=options.pop("http_port"))


@click.command(epilog=EXIT_CODES)
@common_options
@click.option(
    "--output",
    help="Folder or fsspec URI for the animations. [default: animations under the media root]",
)
@click.option(
    "--weights",
    help="The workers' weights; only their sha256 is needed. [default: the package's own]",
)
@click.option(
    "--http-port", type=click.IntRange(0, 65535), help="Health and metrics; 0: any. [default: 8083]"
)
def animator(**options: Any) -> None:
    """Run an animator: videos in, one WebP animation a person out."""
    from streamproc.services.animator import run_animator

    flags = {
        "animator.output_uri": options.pop("output"),
        "clustering.osnet_model": options.pop("weights"),
    }
    run_service(options, run_animator, **flags, service__http_port=options.pop("http_port"))


@click.command(epilog=EXIT_CODES)
@click.argument("video")
@common_options
@click.option(
    "--persons", help="Track file, folder, or URI of a file. [default: looked for beside the video]"
)
@tracks_options
@click.option("--class", "object_class", help="Only boxes of this class, by number or name.")
@click.option(
    "--gallery",
    help="Compare with the persons of all videos of this gallery. [default: of this video alone]",
)
@click.option("--copy", is_flag=True, help="Copy files from outside the media root into it.")
@click.option(
    "--threshold", type=click.FloatRange(-1, 1), help="Least cosine similarity of a candidate."
)
@click.option("--no-animations", is_flag=True, help="Ask for no animations.")
@click.option(
    "--detect/--no-detect",
    default=None,
    help="Ask to find people in the frames, whatever lies beside the video; or never. Without "
    "either, where there is no track file.",
)
@click.option(
    "--option",
    "more_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="One of the event's `options`, such as top_persons=10 or detector.input_size=640.",
)
@click.option(
    "--recorded-at",
    help="Capture time of the first frame (RFC 3339): gives time gaps across videos.",
)
@click.option("--camera", help="Which camera it was.")
@click.option("--json", "as_json", is_flag=True, help="Print the event.")
def submit(video: str, **options: Any) -> None:
    """Announce VIDEO, a file under the media root or a URI. Prints its video_id."""
    from streamproc.kafka import client
    from streamproc.tracks import ReadOptions

    with faults_in_one_line():
        settings = settings_of(options)
        event = client.video_ready(
            settings,
            video,
            persons=options["persons"],
            read_as=ReadOptions(
                format_name=options["tracks_format"],
                boxes=options["boxes"],
                is_normalised=options["normalised"] or None,
                object_class=options["object_class"],
            ),
            copy=options["copy"],
            options=client.video_options(
                options["more_options"],
                similarity_threshold=options["threshold"],
                animate=False if options["no_animations"] else None,
                detector__enabled=options["detect"],
            ),
            gallery_id=options["gallery"],
            recorded_at=options["recorded_at"],
            camera_id=options["camera"],
        )
    run(client.submit(settings, event))
    click.echo(event.to_json() if options["as_json"] else event.video_id)


@click.command(epilog=EXIT_CODES)
@click.argument("video_id")
@common_options
@click.option("--reason", help="Why; part of the event.")
def cancel(video_id: str, **options: Any) -> None:
    """Cancel the video with VIDEO_ID, begun or not."""
    from streamproc.kafka import client

    with faults_in_one_line():
        settings = settings_of(options)
    run(client.cancel(settings, video_id, options["reason"]))


@click.command(epilog=EXIT_CODES)
@common_options
@click.option("--gallery", help="Only candidates of this gallery.")
@click.option(
    "--since",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Begin this many seconds ago.",
)
@click.option("--from-beginning", is_flag=True, help="Begin with the oldest that Kafka holds.")
@click.option(
    "--until-done",
    metavar="VIDEO_ID",
    help="End when this video is done; shows its progress on stderr.",
)
@click.option("--json", "as_json", is_flag=True, help="One event a line.")
def watch(**options: Any) -> None:
    """Print duplicate candidates as they come.

    Each line holds state, person, person, similarity, probability and band.
    """
    from streamproc.kafka import client

    with faults_in_one_line():
        settings = settings_of(options)

    async def show() -> str:
        """Show all events; return the state of the last one."""
        events = client.watch(
            settings,
            gallery_id=options["gallery"],
            since_seconds=None if options["from_beginning"] else options["since"],
            until_done=options["until_done"],
        )
        shown = set()
        state = ""
        async for event in events:
            if event.event_id not in shown:  # the same event may come again
                shown.add(event.event_id)
                _show(event, as_json=options["as_json"])
            state = event.state
        return state

    sys.exit(0 if run(show()) == "done" else EXIT_PARTIAL)


def _show(event: DuplicateCandidate | VideoProgress, *, as_json: bool) -> None:
    from streamproc.events import VideoProgress

    if isinstance(event, VideoProgress):
        progress = "" if event.fraction is None else f" {event.fraction:.0%}"
        reason = "" if event.error is None else f": {event.error.text}"
        line = f"{event.video_id} {event.state}{progress}{reason}"
        click.echo(on_one_line(line), err=True)
    elif as_json:
        click.echo(event.to_json())
    else:
        a, b = event.persons
        fields = [event.state, a.person_key, b.person_key, f"{event.similarity:.4f}"]
        if event.probability is not None:
            fields += [f"{event.probability:.2f}", str(event.band)]
        click.echo("\t".join(map(on_one_line, fields)))


@click.command(epilog=EXIT_CODES)
@click.option(
    "--gallery", required=True, help="Which gallery; of a single video it is its video_id."
)
@click.option("--output", "-o", required=True, type=NamedPath(), help="The .npy file to write.")
@click.option("--url", default="http://127.0.0.1:8082", show_default=True, help="Any matcher.")
def matrix(gallery: str, output: Path, url: str) -> None:
    """Write a gallery's current similarity matrix: float32 (N, N), persons by rising key."""
    from streamproc.kafka import client

    run(client.fetch_matrix(gallery, url, output))


@click.group("dead-letters", epilog=EXIT_CODES)
def dead_letters() -> None:
    """List the records that could not be processed, or send them back."""


@dead_letters.command("list")
@common_options
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def dead_letters_list(**options: Any) -> None:
    """Print dead letters: place, code, origin, reason."""
    from streamproc.kafka import client

    with faults_in_one_line():
        settings = settings_of(options)

    async def show() -> None:
        async for letter in client.dead_letters(settings):
            click.echo(_letter_json(letter) if options["as_json"] else _letter_line(letter))

    run(show())


def _letter_line(letter: DeadLetter) -> str:
    topic, partition, offset = map(letter.reason, ("topic", "partition", "offset"))
    code, text = map(letter.reason, ("error_code", "error_text"))
    fields = (letter.where, code, f"{topic}[{partition}]@{offset}", text)
    return "\t".join(map(on_one_line, fields))


def _letter_json(letter: DeadLetter) -> bytes:
    import orjson

    reasons = {
        name.removeprefix("dlq_"): value.decode(errors="replace")
        for name, value in letter.headers
        if name.startswith("dlq_")
    }
    key = (letter.key or b"").decode(errors="replace")
    return orjson.dumps({"where": letter.where, "key": key, **reasons})


@dead_letters.command("replay")
@click.argument("where", nargs=-1)
@common_options
@click.option("--all", "everything", is_flag=True, help="All that the topic holds.")
@click.option("--code", help="Only those with this code.")
def dead_letters_replay(where: tuple[str, ...], **options: Any) -> None:
    """Send dead letters back to their topics: those at WHERE (as `list` prints it), or all."""
    from streamproc.errors import UsageError
    from streamproc.kafka import client

    with faults_in_one_line():
        settings = settings_of(options)
        if not where and not options["everything"] and options["code"] is None:
            raise UsageError(
                "expected places such as 0@12 (see `streamproc dead-letters list`), "
                "--code CODE or --all"
            )
    places = frozenset(where)
    sent, not_sent = run(client.replay_dead_letters(settings, places, options["code"]))
    click.echo(f"{sent} sent back", err=True)
    for place, reason in not_sent:
        click.echo(f"{place}: cannot be sent back, {on_one_line(reason)}", err=True)
    sys.exit(EXIT_PARTIAL if not_sent else 0)


@click.command(epilog=EXIT_CODES)
@common_options
@click.option(
    "--folder",
    type=NamedPath(),
    default=Path(".streamproc-dev"),
    show_default=True,
    help="Kafka's data and the matcher's state.",
)
def dev(folder: Path, **options: Any) -> None:
    """Run worker, matcher, animator and the live page in one terminal.

    Starts a Kafka of its own unless --bootstrap names one.
    """
    from streamproc.services.dev import run_dev

    config = options["config"]
    with faults_in_one_line():
        settings = settings_of(options)
    os.umask(settings.umask_bits())
    run(run_dev(settings, folder=folder, config_file=config))


COMMANDS = (topics, worker, matcher, animator, submit, cancel, watch, matrix, dead_letters, dev)
