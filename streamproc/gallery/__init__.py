"""The matcher's pure core: rows, similarities, vetoes, candidates. numpy only, no I/O."""

from streamproc.gallery.calibration.curve import Curve, load_curves
from streamproc.gallery.calibration.scorer import Calibration, GalleryScorer
from streamproc.gallery.carry_over import Place
from streamproc.gallery.forgetting import Holdings, Named, holdings
from streamproc.gallery.gallery import Gallery, Row, Snapshot, VideoRecord, Writes
from streamproc.gallery.matcher import (
    UNCALIBRATED,
    MatchResult,
    apply,
    expire,
    forget,
    forget_decisions,
)
from streamproc.gallery.pairs import (
    FLOAT32_SLACK,
    Candidate,
    Evidence,
    Group,
    Judgement,
    candidate_id_of,
    has_veto,
    pair_similarity,
)
from streamproc.gallery.reviewed import Kept

__all__ = [
    "FLOAT32_SLACK",
    "UNCALIBRATED",
    "Calibration",
    "Candidate",
    "Curve",
    "Evidence",
    "Gallery",
    "GalleryScorer",
    "Group",
    "Holdings",
    "Judgement",
    "Kept",
    "MatchResult",
    "Named",
    "Place",
    "Row",
    "Snapshot",
    "VideoRecord",
    "Writes",
    "apply",
    "candidate_id_of",
    "expire",
    "forget",
    "forget_decisions",
    "has_veto",
    "holdings",
    "load_curves",
    "pair_similarity",
]
