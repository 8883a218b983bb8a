"""What was learned once of the vectors of one set of weights, and the file that holds it.

`calibration.json`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from streamproc.errors import WeightsError
from streamproc.ids import hash_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.types import Float32Array

    Float64Array = npt.NDArray[np.float64]

METHOD = "centred-whitened-rivals-size-5"
"""Part of every `calibration_id`: raise it when the arithmetic of this package's judging changes."""

ALONE = 6
"""So many features are of the two persons' looks alone; then come rivals, the gallery's doubles, and sizes."""
FEATURES = ALONE + 3
SIZE_COUNTS = 1.0
"""The last coefficient, where nobody's pairs say otherwise: what sizes say is log-odds already."""
_LARGEST_LOGIT = 50.0


@dataclass(frozen=True, eq=False)  # no slots: the id is kept once it is asked for
class Curve:
    """What was learned once of the vectors of one set of weights. Made by `models/calibrate.py`.

    `mean` (dim,) of the training persons; their covariance within persons, of trace 1, is `spread`
    (k,) along the unit rows of `basis` (k, dim) and `rest` in every other direction; `part_trace`
    is the trace of the covariance within tracks. `arrival`: intercept, weight of the similarity.
    `alone`: intercept and weights of the first features of `GalleryScorer.features`, of two persons
    alone, for the odds of others; `closed`: intercept and weights of them all, and `bent`:
    intercept, slope towards 0 and slope towards 1 of what they come to (see `bend`).
    """

    mean: Float32Array
    basis: Float32Array
    spread: Float32Array
    rest: float
    part_trace: float
    arrival: tuple[float, float]
    alone: tuple[float, ...]
    closed: tuple[float, ...]
    bent: tuple[float, float, float]

    def __post_init__(self) -> None:
        k, dim = self.basis.shape
        if self.mean.shape != (dim,) or self.spread.shape != (k,):
            raise ValueError(
                f"expected mean ({dim},) and spread ({k},), got {self.mean.shape}, {self.spread.shape}"
            )
        if (len(self.alone), len(self.closed)) != (1 + ALONE, 1 + FEATURES):
            raise ValueError(
                f"expected {1 + ALONE} and {1 + FEATURES} coefficients, got {self.alone}, {self.closed}"
            )

    @cached_property
    def calibration_id(self) -> str:
        """Stands for everything that a probability is made of."""
        return hash_of(METHOD, self.to_json())[:16]

    def __repr__(self) -> str:
        return f"Curve({self.calibration_id}, basis {self.basis.shape})"

    def covariance(self) -> Float64Array:
        """Covariance within persons (dim, dim), of trace 1."""
        basis = self.basis.astype(np.float64)
        covariance: Float64Array = (
            basis.T * (self.spread - self.rest)
        ) @ basis + self.rest * np.eye(len(self.mean))
        return covariance

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON values; arrays as base64 of little-endian float32."""
        return {
            "method": METHOD,
            "dim": len(self.mean),
            "mean": _packed(self.mean),
            "basis": _packed(self.basis),
            "spread": _packed(self.spread),
            "rest": self.rest,
            "part_trace": self.part_trace,
            "arrival": list(self.arrival),
            "alone": list(self.alone),
            "closed": list(self.closed),
            "bent": list(self.bent),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; raises ValueError for anything else."""
        try:
            if values["method"] != METHOD:
                got = f"{values['method']!r:.80}"
                raise ValueError(
                    f"expected the method {METHOD!r}, got {got}; fit it anew with streamproc calibrate"
                )
            dim = int(values["dim"])
            intercept, slope = map(float, values["arrival"])
            shift, low, high = map(float, values["bent"])
            curve = cls(
                mean=_unpacked(values["mean"]),
                basis=_unpacked(values["basis"]).reshape(-1, dim),
                spread=_unpacked(values["spread"]),
                rest=float(values["rest"]),
                part_trace=float(values["part_trace"]),
                arrival=(intercept, slope),
                alone=tuple(map(float, values["alone"])),
                closed=tuple(map(float, values["closed"])),
                bent=(shift, low, high),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected a curve, got one without or with another {error}"
            ) from error
        numbers = [
            curve.rest,
            curve.part_trace,
            *curve.arrival,
            *curve.alone,
            *curve.closed,
            *curve.bent,
        ]
        arrays = (curve.mean, curve.basis, curve.spread)
        if not (np.isfinite(numbers).all() and all(np.isfinite(a).all() for a in arrays)):
            raise ValueError("expected finite coefficients and arrays")
        if low < 0 or high < 0:
            raise ValueError(f"expected slopes that do not fall, got {low} and {high}")
        return curve


def _packed(values: Float32Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _unpacked(text: str) -> Float32Array:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def sigmoid(logits: Float64Array) -> Float64Array:
    """Probabilities of log-odds."""
    chances: Float64Array = 1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)))
    return chances


STRAIGHT = (0.0, 1.0, 1.0)


def bend(logits: Float64Array, bent: tuple[float, float, float]) -> Float64Array:
    """Log-odds after beta calibration: -`low` ln(1 + e^-x) + `high` ln(1 + e^x) + `shift`, x by itself if STRAIGHT."""
    shift, low, high = bent
    new: Float64Array = shift - low * np.logaddexp(0, -logits) + high * np.logaddexp(0, logits)
    return new


def curves_to_json(curves: Mapping[str, Curve]) -> bytes:
    """What `load_curves` reads."""
    content = {"curves": {sha256: curves[sha256].to_json() for sha256 in sorted(curves)}}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load_curves(path: Path) -> dict[str, Curve]:
    """Read `calibration.json`: curves by `weights_sha256`. Raises WeightsError in one line."""
    try:
        content = orjson.loads(path.read_bytes())
        return {sha256: Curve.from_json(values) for sha256, values in content["curves"].items()}
    except OSError as error:
        raise WeightsError(f"{path}: expected the calibration curves ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected calibration curves by weights ({' '.join(str(error).split())})"
        ) from error
