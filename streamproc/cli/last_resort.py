"""How the command line ends where nothing else did: one line, an exit code, and no traceback.

The traceback of an error that nobody expected goes to a file that only its owner can read.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from streamproc.cli.common import EXIT_FAILURE, EXIT_INTERRUPTED, last_config
from streamproc.errors import StreamprocError
from streamproc.files import on_one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPORTS_FOLDER = "errors"
"""In `cache_folder`: the files with tracebacks."""
_KEPT_REPORTS = 10
_SHOWN_CHARACTERS = 200
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)
_HANDLER = "streamproc-names"


def run(command: Callable[[], object]) -> int:
    """Run a command to its end, and return its exit code."""
    prepare_output()
    try:
        try:
            code = _code_of(command)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # a reader (`| head`) has closed the output early
        code = EXIT_FAILURE
    except OSError as error:
        if error.filename is None and error.errno in _OUTPUT_ERRORS:
            _say(f"the output cannot be written ({error.strerror}); make room, or name another")
        else:
            _report(error)
        code = EXIT_FAILURE
    except Exception as error:  # noqa: BLE001 - the last resort
        _report(error)
        code = EXIT_FAILURE
    _forget_output()
    return code


def _code_of(command: Callable[[], object]) -> int:
    try:
        result = command()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_at = "" if context is None else f"; see `{context.command_path} --help`"
        _say(f"{error.format_message()}{help_at}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return result if isinstance(result, int) else 0


def prepare_output() -> None:
    """Make standard output and error take every name of a file, and exist."""
    codecs.register_error(_HANDLER, _encode_name)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def _encode_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a name as they are, and other characters that do not fit as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    try:
        return part.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return part.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _forget_output() -> None:
    """Send what is still buffered nowhere: writing it again at exit would be a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"streamproc: {on_one_line(text)}", err=True)


def _report(error: Exception) -> None:
    """Write the traceback to a file, or to stderr where that fails; say where it is."""
    text = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {on_one_line(str(error))}"[:_SHOWN_CHARACTERS]
    try:
        path = write_report(_reports_folder(), text)
    except OSError:
        _say(f"stopped by an error of its own ({what})")
        with contextlib.suppress(OSError):
            click.echo(text, err=True)
        return
    _say(f"stopped by an error of its own ({what}); please report it with the file {path}")


def _reports_folder() -> Path:
    from streamproc.settings import Settings, load_settings

    try:
        settings = load_settings({}, config_file=last_config())
    except StreamprocError:
        settings = Settings.model_construct()
    return settings.expanded_cache_folder() / REPORTS_FOLDER


def write_report(folder: Path, text: str) -> Path:
    """Write a new file that only its owner can read; the ten newest are kept."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{time}-{os.getpid()}.txt"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    for old in sorted(folder.glob("*Z-*.txt"))[:-_KEPT_REPORTS]:
        old.unlink(missing_ok=True)
    return path
