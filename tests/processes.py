"""Runs programs beside a test, and waits for what they do.

A wait ends as soon as a program that it waits for has ended, and shows that program's last lines.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

PATIENCE_SECONDS = 60.0
STREAMPROC = (sys.executable, "-m", "streamproc")
_LAST_CHARACTERS = 3000


class Process:
    """A running program whose output, stdout and stderr, goes to the end of a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._may_end = False
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def last_lines(self) -> str:
        return f"{self.name}:\n{self.log[-_LAST_CHARACTERS:]}"

    @property
    def ended_by_itself(self) -> bool:
        """Whether it has ended, and not because a test ended it or waited for its end."""
        return not self._may_end and self.process.poll() is not None

    def has_ended(self) -> bool:
        """Whether it has ended; waits for something else no longer fail for that."""
        self._may_end = self._may_end or self.process.poll() is not None
        return self.process.poll() is not None

    def wait(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it ends by itself, and return its exit code."""
        self._may_end = True
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            message = f"{self.name} had not ended after {seconds} s\n{self.last_lines}"
            raise AssertionError(message) from None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def stop(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Ask it to end with SIGTERM, and return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def kill(self) -> None:
        self._may_end = True
        self.process.kill()
        self.process.wait()


def run_streamproc(
    *arguments: object,
    program: Sequence[str] = STREAMPROC,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, which must be without a traceback.

    `program` may be a script that breaks what a machine can break.
    """
    done = subprocess.run(
        [*program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def eventually(
    check: Callable[[], object],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    processes: Collection[Process] = (),
) -> object:
    """Poll until `check` gives something true, and return that.

    Fail with `what` after `seconds`, or as soon as one of `processes` has ended by itself. Either
    way their last lines are shown.
    """
    end = time.monotonic() + seconds
    while True:
        # Asked before `check`, which may be true because of the last thing that a process did.
        ended = [process for process in processes if process.ended_by_itself]
        if result := check():
            return result
        for process in ended:
            if process.ended_by_itself:  # `check` may have noticed it, and know what to do
                ended_with = f"{process.name} ended with code {process.process.returncode}"
                raise AssertionError(f"{ended_with}; waited for: {what}\n{process.last_lines}")
        if time.monotonic() > end:
            last_lines = "\n".join(process.last_lines for process in processes)
            raise AssertionError(f"not within {seconds} s: {what}\n{last_lines}")
        time.sleep(0.1)
