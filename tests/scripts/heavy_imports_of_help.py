"""Ends with the names of the heavy modules that `streamproc replay --help` imports, 0 for none."""

from __future__ import annotations

import sys

from streamproc.cli import cli

HEAVY = {"av", "numpy", "PIL", "onnxruntime", "torch", "pydantic", "rich", "plotly", "asyncio"}

cli.main(["replay", "--help"], standalone_mode=False)
imported = HEAVY & set(sys.modules)
sys.exit(str(imported) if imported else 0)
