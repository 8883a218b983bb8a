"""Embeds a black crop by the default weights, and prints whether torch was imported.

Its argument is the folder for what the network keeps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from streamproc.reid import Embedder, find_weights

embedder = Embedder(find_weights(None, cache_folder=Path(sys.argv[1])))
embedder.embed(np.zeros((1, 256, 128, 3), np.uint8))
print("torch" in sys.modules)
