"""The learned values that lie in `learned/`, read.

`linking.NAME.json` has the coefficients of one set of weights, fitted on all videos (`all`) and
without each; `purity.NAME.json` those of impure tracks. What is learned of the vectors themselves
is in the weights' calibration curve, `models/calibration.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from models.linking.galleries import looks_of
from models.linking.motion import PositionModel
from models.linking.pair_model import PairModel
from models.linking.purity import PurityModel
from streamproc.gallery import load_curves

FOLDER = Path(__file__).resolve().parent / "learned"
CURVES = FOLDER.parents[1] / "calibration.json"


def load_linking(name: str = "own", *, without: str | None = None) -> PairModel:
    """Read the model of weights `own`, `A` or `B`, that of all videos or `without` one of them."""
    values = json.loads((FOLDER / f"linking.{name}.json").read_bytes())
    chosen = values["all" if without is None else f"without {without}"]
    first, final = (
        {kind: list(named.values()) for kind, named in chosen[stage].items()}
        for stage in ("first", "final")
    )
    return PairModel(
        looks_of(load_curves(CURVES)[values["sha256"]]),
        PositionModel(**chosen["position"]),
        first,
        final,
        list(chosen["group"].values()),
    )


def load_purity(name: str = "own") -> PurityModel:
    """Read the model of impure tracks."""
    values = json.loads((FOLDER / f"purity.{name}.json").read_bytes())
    return PurityModel(*(values[field] for field in PurityModel.__slots__))
