"""The matcher's pure core: rows, similarities, vetoes, candidates. numpy only, no I/O."""

from streamproc.gallery.matcher import FLOAT32_SLACK, Outcome, apply, candidate_id_of, expire, has_veto, pair_similarity
from streamproc.gallery.state import Gallery, Neighbour, Row, Snapshot, VideoRecord, Writes

__all__ = [
    "FLOAT32_SLACK",
    "Gallery",
    "Neighbour",
    "Outcome",
    "Row",
    "Snapshot",
    "VideoRecord",
    "Writes",
    "apply",
    "candidate_id_of",
    "expire",
    "has_veto",
    "pair_similarity",
]
