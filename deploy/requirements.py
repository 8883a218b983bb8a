"""Prints what must be installed for the extras named, from the pyproject.toml here.

`requirements.py s3,gpu`.
"""
# ruff: noqa: INP001, T201 - a script, not a package; printing is its purpose

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [
    line for extra in sys.argv[1].split(",") for line in project["optional-dependencies"][extra]
]
print("\n".join(project["dependencies"] + extras))
