"""The commands `streamproc models`: the weights that the manifest names."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import (
    EXIT_CODES,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    config_option,
    faults_in_one_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamproc.networks.manifest import ModelEntry
    from streamproc.settings import Settings

PLAIN_EVERY_SECONDS = 5.0


@click.group(epilog=EXIT_CODES)
def models() -> None:
    """Weights by name: which there are, fetch them, check them."""


@models.command("list")
@config_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One object a line, with everything that the manifest says.",
)
def models_list(config: Path | None, *, as_json: bool) -> None:
    """Print all names: name, sha256, where it is (package, a path, or -), trained on, licence."""
    import orjson

    from streamproc.networks.manifest import load_manifest, locate

    with faults_in_one_line():
        folders = _folders(_settings(config))
        entries = load_manifest().models
    for entry in entries:
        path, _ = locate(entry, folders)
        if as_json:
            found = {"path": None if path is None else str(path)}
            click.echo(orjson.dumps(entry.model_dump(mode="json") | found))
        else:
            where = str(path or "-")
            if path is not None and entry.url is None:
                where = "package"
            click.echo(
                f"{entry.name}\t{entry.sha256[:8]}\t{where}\t{entry.trained_on}\t{entry.licence}"
            )


@models.command("pull")
@click.argument("names", nargs=-1, required=True)
@config_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to fill. [default: models in cache_folder]",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def models_pull(
    names: tuple[str, ...], config: Path | None, to: Path | None, *, quiet: bool
) -> None:
    """Fetch the weights NAMES, unless they are here, and print their paths.

    A download that was cut off goes on where it stopped.
    """
    from streamproc.errors import UsageError
    from streamproc.networks.download import Download
    from streamproc.networks.manifest import MODELS_SUBFOLDER, locate

    with faults_in_one_line():
        settings = _settings(config)
        folder = to or settings.expanded_cache_folder() / MODELS_SUBFOLDER
        for entry in _entries(names):
            path, wrong = locate(entry, (to,) if to is not None else _folders(settings))
            # In the cache a wrong file is replaced; in a folder of the user's it may be theirs.
            if to is not None and to / entry.file_name in wrong:
                raise UsageError(
                    f"{to / entry.file_name} is another file than {entry.name}: move it away first"
                )
            if path is None and entry.url is not None:
                with _stopped_by_hand(), _shown(entry.name, quiet=quiet) as progress:
                    path = Download(entry, folder, progress).run()
            click.echo(path or _missing(entry))


@models.command("verify")
@click.argument("names", nargs=-1)
@config_option
def models_verify(names: tuple[str, ...], config: Path | None) -> None:
    """Hash the files of NAMES, or of all names: name, ok or wrong or missing, path.

    The exit code is 1 if a file is wrong, or if one of NAMES is missing.
    """
    from streamproc.networks.manifest import load_manifest, locate

    failed = False
    with faults_in_one_line():
        folders = _folders(_settings(config))
        for entry in _entries(names) if names else load_manifest().models:
            path, wrong = locate(entry, folders)
            for other in wrong:
                click.echo(f"{entry.name}\twrong\t{other}")
            if path is not None or not wrong:
                click.echo(f"{entry.name}\t{'missing' if path is None else 'ok'}\t{path or '-'}")
            failed |= bool(wrong) or (path is None and bool(names))
    sys.exit(EXIT_FAILURE if failed else 0)


@models.command("path")
@click.argument("name")
@config_option
def models_path(name: str, config: Path | None) -> None:
    """Print where the weights NAME lie on this machine, checked; exit code 1 if they do not."""
    from streamproc.networks.manifest import require

    with faults_in_one_line():
        click.echo(require(_entries([name])[0], _folders(_settings(config))))


def _settings(config: Path | None) -> Settings:
    from streamproc.settings import load_settings

    return load_settings({}, config_file=config)


def _folders(settings: Settings) -> tuple[Path, ...]:
    from streamproc.networks.manifest import search_folders

    return search_folders(settings.expanded_cache_folder(), settings.models)


def _entries(names: Sequence[str]) -> list[ModelEntry]:
    from streamproc.errors import UsageError
    from streamproc.networks.manifest import load_manifest

    manifest = load_manifest()
    entries = []
    for name in names:
        entry = manifest.find(name)
        if entry is None:
            known = ", ".join(other.name for other in manifest.models)
            raise UsageError(f"no weights are called {name!r}: expected one of {known}")
        entries.append(entry)
    return entries


def _missing(entry: ModelEntry) -> Path:
    from streamproc.networks.manifest import require

    return require(entry, ())  # raises: the package lacks its own weights


@contextlib.contextmanager
def _stopped_by_hand() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _shown(name: str, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Show progress on stderr: a bar on a terminal, else a line every few seconds."""
    if quiet:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(name) as show:
            yield show
    else:
        yield _plain(name)


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain(name: str) -> Callable[[int, int | None], None]:
    last_seconds = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal last_seconds
        if done == total or time.monotonic() - last_seconds >= PLAIN_EVERY_SECONDS:
            last_seconds = time.monotonic()
            click.echo(f"{name}: {done} of {total or '?'} bytes", err=True)

    return show
