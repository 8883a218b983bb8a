"""The folder of research data beside the checkout, which most clones do not have.

`STREAMPROC_TEST_SHARED=none` hides it, so that the suite runs as in a clone without it. With
`STREAMPROC_TEST_SHARED=required` a test that needs it fails where it is missing; without the
variable such a test is skipped there.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "STREAMPROC_TEST_SHARED"
_FOLDER = Path(__file__).resolve().parents[2] / "shared"


def shared_folder() -> Path | None:
    """The folder, None where it is missing or hidden."""
    is_there = (_FOLDER / "data" / "README.md").is_file()
    return _FOLDER if is_there and os.environ.get(VARIABLE) != "none" else None


def is_required() -> bool:
    """Whether a test must fail rather than be skipped where the folder is missing."""
    return os.environ.get(VARIABLE) == "required"
