"""The matcher's pure core: rows, similarities, vetoes, candidates. numpy only, no I/O."""

from streamproc.gallery.calibration.curve import Curve, load_curves
from streamproc.gallery.calibration.scorer import Calibration, GalleryScorer, Judgement
from streamproc.gallery.gallery import Gallery, Neighbour, Row, Snapshot, VideoRecord, Writes
from streamproc.gallery.matcher import FLOAT32_SLACK, UNCALIBRATED, Outcome, apply, expire
from streamproc.gallery.pairs import candidate_id_of, has_veto, pair_similarity

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
