"""The matcher's pure core: rows, similarities, vetoes, candidates. numpy only, no I/O."""

from streamproc.gallery.calibration import Calibration, GalleryScorer, Judgement
from streamproc.gallery.curve import Curve, load_curves
from streamproc.gallery.matcher import (
    FLOAT32_SLACK,
    UNCALIBRATED,
    Outcome,
    apply,
    candidate_id_of,
    expire,
    has_veto,
    pair_similarity,
)
from streamproc.gallery.state import Gallery, Neighbour, Row, Snapshot, VideoRecord, Writes

__all__ = [
    "FLOAT32_SLACK",
    "UNCALIBRATED",
    "Calibration",
    "Curve",
    "Gallery",
    "GalleryScorer",
    "Judgement",
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
    "load_curves",
    "pair_similarity",
]
