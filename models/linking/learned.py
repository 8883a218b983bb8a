"""The learned values that lie in `learned/`, read.

`linking.NAME.json` has the coefficients of one set of weights, fitted on all videos (`all`) and
without each; `purity.NAME.json` those of impure tracks. What is learned of the vectors themselves
is in the weights' calibration curve, `models/calibration.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from streamproc.gallery import load_curves
from streamproc.gallery.linking.pair_model import Coefficients, PairModel
from streamproc.gallery.linking.purity import PurityModel

FOLDER = Path(__file__).resolve().parent / "learned"
CURVES = FOLDER.parents[1] / "calibration.json"


def load_linking(name: str = "own", *, without: str | None = None) -> PairModel:
    """Read the model of weights `own`, `A` or `B`, that of all videos or `without` one of them."""
    values = json.loads((FOLDER / f"linking.{name}.json").read_bytes())
    chosen = values["all" if without is None else f"without {without}"]
    looks = load_curves(CURVES)[values["sha256"]].looks()
    return PairModel.of(looks, Coefficients.from_json(chosen))


def all_coefficients(*, without: str | None = None) -> dict[str, Coefficients]:
    """Read the coefficients of all weights, by sha256; `without` what one video would tell."""
    chosen = "all" if without is None else f"without {without}"
    found = {}
    for path in sorted(FOLDER.glob("linking.*.json")):
        values = json.loads(path.read_bytes())
        if chosen not in values:
            known = ", ".join(name.removeprefix("without ") for name in values if " " in name)
            raise ValueError(f"expected one of {known} to leave out, got {without!r}")
        found[values["sha256"]] = Coefficients.from_json(values[chosen])
    return found


def load_purity(name: str = "own") -> PurityModel:
    """Read the model of impure tracks."""
    values = json.loads((FOLDER / f"purity.{name}.json").read_bytes())
    return PurityModel.from_json(values)


def all_purity() -> dict[str, PurityModel]:
    """Read the models of impure tracks of all weights that have one, by sha256."""
    names = [path.name.split(".")[1] for path in sorted(FOLDER.glob("purity.*.json"))]
    sha256 = {
        name: json.loads((FOLDER / f"linking.{name}.json").read_bytes())["sha256"] for name in names
    }
    return {sha256[name]: load_purity(name) for name in names}
