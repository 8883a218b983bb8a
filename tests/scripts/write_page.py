"""Writes a report with its page into a folder, and prints whether plotly was imported."""

from __future__ import annotations

import sys

from reports import write

write(sys.argv[1], 1, 2)
print("plotly" in sys.modules)
