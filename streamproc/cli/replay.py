"""The command `streamproc replay`."""

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
    MAX_NUMBER,
    NamedPath,
    config_option,
    faults_in_one_line,
    tracks_options,
)
from streamproc.files import on_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.events import DuplicateCandidate
    from streamproc.offline.replay import Replay
    from streamproc.offline.results import Result
    from streamproc.tracks import ReadOptions

_MAX_NAME_BYTES = 255


@click.command(epilog=EXIT_CODES)
@click.argument("videos", nargs=-1, required=True, type=NamedPath())
@click.option(
    "--persons",
    multiple=True,
    type=NamedPath(),
    help="Track file or folder, one for each video; else it is looked for beside the video.",
)
@click.option(
    "--detect/--no-detect",
    default=None,
    help="Find people in the frames, whatever lies beside the video; or never. Without either, "
    "where there is no track file.",
)
@click.option(
    "--detector", help="Detector that finds people: an .onnx file. [default: the package's own]"
)
@click.option(
    "--save-tracks",
    type=NamedPath(),
    help="Write the tracks that are found to this file as well: .npz, else MOT text.",
)
@click.option(
    "--out",
    type=NamedPath(),
    help="Folder for the results. [default: NAME.streamproc here]",
)
@click.option("--gallery", help="Compare the persons of all videos in one gallery of this name.")
@click.option(
    "--threshold", type=float, help="Least cosine similarity of a candidate. [default: 0.70]"
)
@click.option(
    "--top",
    type=click.IntRange(0, MAX_NUMBER),
    help="Only the N persons with the most frames; 0 is everybody. [default: 0]",
)
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
    "--calibration",
    type=NamedPath(),
    help="Curves that `streamproc calibrate` wrote. [default: the package's own]",
)
@click.option(
    "--decisions",
    type=NamedPath(),
    help="Decisions of reviewers, besides those in the folder of the results.",
)
@click.option("--no-animations", is_flag=True, help="Write no WebP animations.")
@click.option(
    "--first-frame-number",
    type=click.IntRange(-MAX_NUMBER, MAX_NUMBER),
    help="The track file's number of the video's first frame.",
)
@click.option(
    "--frame-stride",
    type=click.IntRange(1, 1_000_000),
    help="Tracks were made on every N-th frame and count those.",
)
@click.option("--class", "object_class", help="Only boxes of this class, by number or name.")
@tracks_options
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def replay(videos: tuple[Path, ...], **options: Any) -> None:
    """Find duplicate persons in VIDEOS, offline.

    People are found in the frames where no tracks lie beside a video.

    Writes candidates, animations and a page.
    """
    with faults_in_one_line():
        results = _run_replay(videos, options)
    for notice in dict.fromkeys(notice for result in results for notice in result.notices):
        click.echo(on_one_line(notice), err=True)
    if options["as_json"]:
        _print_json(results)
    else:
        _print_results(results)
    sys.exit(_exit_code(results))


def _run_replay(videos: Sequence[Path], options: dict[str, Any]) -> list[Result]:
    from streamproc.offline.sources import find_sources, read_ahead

    sources = find_sources(
        videos, options["persons"], _read_options(options), detect=options["detect"] is True
    )
    with read_ahead(sources):
        from streamproc.offline.replay import Replay
        from streamproc.settings import load_settings

        settings = load_settings(_settings_of(options), config_file=options["config"])
        work = Replay(
            sources,
            settings,
            gallery=options["gallery"],
            out=options["out"] or _default_folder(videos, options["gallery"]),
            decisions=options["decisions"],
            save_tracks=options["save_tracks"],
        )
        return _with_signals(work, quiet=options["quiet"])


def _read_options(options: dict[str, Any]) -> ReadOptions:
    from streamproc.tracks import ReadOptions

    return ReadOptions(
        first_frame_number=options["first_frame_number"],
        frame_stride=options["frame_stride"],
        object_class=options["object_class"],
        format_name=options["tracks_format"],
        boxes=options["boxes"],
        is_normalised=options["normalised"] or None,
    )


def _settings_of(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "detector.enabled": options["detect"],
        "detector.model": options["detector"],
        "clustering.similarity_threshold": options["threshold"],
        "clustering.osnet_model": options["weights"],
        "clustering.device": options["device"],
        "clustering.calibration": options["calibration"],
        "top_persons": options["top"],
        "animate": False if options["no_animations"] else None,
    }


def _default_folder(videos: Sequence[Path], gallery: str | None) -> Path:
    """Return the folder here that is named after the gallery or video; raises UsageError."""
    from streamproc.errors import UsageError

    name = f"{gallery or (videos[0].stem if len(videos) == 1 else 'videos')}.streamproc"
    if gallery is not None and "/" in gallery:
        raise UsageError(
            f"--gallery {gallery}: no folder here can have that name: name one with --out"
        )
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise UsageError(f"{name}: too long for the name of a folder: name one with --out")
    return Path(name)


def _with_signals(work: Replay, *, quiet: bool) -> list[Result]:
    """Run to the end. The first Ctrl-C or SIGTERM finishes what has begun, the second gives up."""
    import asyncio
    import signal

    from streamproc.cli.progress import show_progress

    async def run() -> list[Result]:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if work.stop.is_set():
                task.cancel()
                return
            work.stop.set()
            click.echo(
                "stopping: finishing what has begun; press Ctrl-C again to give up", err=True
            )

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        async with show_progress(work.videos, quiet=quiet):
            return await work.run()

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        click.echo("given up: no files were written", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _exit_code(results: Sequence[Result]) -> int:
    # Without results it was stopped before the first video.
    if not results or any(result.interrupted for result in results):
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if any(result.partial for result in results) else 0


def _print_results(results: Sequence[Result]) -> None:
    for result in results:
        for candidate in result.candidates:
            first, second = _labels(candidate, result)
            click.echo(f"{first}\t{second}\t{candidate.similarity:.4f}")
        if not result.person_ids and _is_empty(result):
            click.echo(f"nobody was found in the video; page: {_page(result)}", err=True)
            continue
        found = _counted(len(result.candidates), "possible duplicate")
        persons = _counted(len(result.person_ids), "person")
        click.echo(f"{found} among {persons}; page: {_page(result)}", err=True)


def _is_empty(result: Result) -> bool:
    """Whether nobody was found in videos that have no track files."""
    return not result.skipped and all(
        video["tracks_from"] == "detector" for video in result.summary["videos"]
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _labels(candidate: DuplicateCandidate, result: Result) -> list[str]:
    """Return how the two persons are called: by id if the gallery is one video, else by key."""
    a, b = candidate.persons
    one_video = a.video_id == b.video_id and "/" not in str(result.person_ids[0])
    if one_video:
        return [key.rpartition("/")[2] for key in (a.person_key, b.person_key)]
    return [a.person_key, b.person_key]


def _page(result: Result) -> str:
    return str((result.out or Path()) / "webp_viewer" / "person_selection.html")


def _print_json(results: Sequence[Result]) -> None:
    from streamproc.offline.artifacts import to_json

    summaries = [_summary(result) for result in results]
    content = summaries[0] if len(summaries) == 1 else {"galleries": summaries}
    sys.stdout.buffer.write(to_json(content, indent=True) + b"\n")


def _summary(result: Result) -> dict[str, Any]:
    candidates = [
        candidate.model_dump(mode="json", exclude_none=True) for candidate in result.candidates
    ]
    return result.summary | {
        "out": str(result.out),
        "page": _page(result),
        "person_ids": list(result.person_ids),
        "candidates": candidates,
        "groups": [group.model_dump(mode="json", exclude_none=True) for group in result.groups],
        "exit_code": _exit_code([result]),
    }
