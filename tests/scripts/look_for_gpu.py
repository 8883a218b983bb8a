"""Prints why there is no GPU if the driver's file is PATH, and whether torch was imported."""

from __future__ import annotations

import sys
from pathlib import Path

from streamproc.networks.devices import why_no_gpu

print(why_no_gpu([Path(sys.argv[1])]))
print("torch" in sys.modules)
