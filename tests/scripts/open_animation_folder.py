"""Opens a store of animations in a folder, and prints whether fsspec and Pillow were imported."""

from __future__ import annotations

import sys

from streamproc.storage.animations import AnimationStore

AnimationStore(sys.argv[1])
print("fsspec" in sys.modules, "PIL" in sys.modules)
