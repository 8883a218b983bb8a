"""Runs the programs of tests/scripts: each shows what can be seen only in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def command(name: str, *arguments: object) -> list[str]:
    """The command line that runs tests/scripts/`name`."""
    return [sys.executable, str(TESTS / "scripts" / name), *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """The environment in which a program finds the package and the helpers of the tests."""
    return os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"} | variables


def run_program(
    name: str, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run tests/scripts/`name` to its end, and return its exit code and its output."""
    return subprocess.run(
        command(name, *arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
