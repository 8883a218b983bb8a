"""The matcher's pure core: rows, similarities, vetoes, candidates. numpy only, no I/O."""

from streamproc.gallery.matcher import FLOAT32_SLACK, Outcome, apply, has_veto, pair_similarity
from streamproc.gallery.state import Gallery, Neighbour, Row, VideoRecord, Writes

__all__ = [
    "FLOAT32_SLACK",
    "Gallery",
    "Neighbour",
    "Outcome",
    "Row",
    "VideoRecord",
    "Writes",
    "apply",
    "has_veto",
    "pair_similarity",
]
