"""Writes what a run found: artifact files, and one page that opens from disk with no network.

`OutputDirectory` stages files and moves them into place whole; `GalleryReport` is what it writes.
"""

from streamproc.outputs.directory import OutputDirectory
from streamproc.outputs.report import GalleryReport, Pair, PersonEntry, PersonId

__all__ = ["GalleryReport", "OutputDirectory", "Pair", "PersonEntry", "PersonId"]
