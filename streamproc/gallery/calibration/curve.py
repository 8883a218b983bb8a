"""A calibration curve: what was learned of the vectors of one set of weights, and its file.

`calibration.json` holds curves by the sha256 of their weights.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from streamproc.errors import WeightsError
from streamproc.gallery.linking.pair_features import LooksModel
from streamproc.gallery.linking.pair_model import Coefficients, PairModel
from streamproc.gallery.linking.purity import PurityModel, TrackJudge
from streamproc.ids import hash_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.types import Float32Array

    Float64Array = npt.NDArray[np.float64]

METHOD = "centred-whitened-rivals-size-5"
"""Part of every `calibration_id`. Raise it with every change that gives other probabilities for the
same curve and the same gallery."""

PAIR_FEATURES = 6
"""So many features are of the two tracklets alone; see `GalleryScorer.pair_features`."""
FEATURES = PAIR_FEATURES + 3
"""All features; see `GalleryScorer.features`."""
SIZE_COEFFICIENT = 1.0
"""The last coefficient where no pairs say otherwise: that feature is in log-odds already."""
NO_BETA = (0.0, 1.0, 1.0)
"""The coefficients of a beta calibration that changes nothing."""
_LARGEST_LOGIT = 50.0


@dataclass(frozen=True, eq=False)  # without slots, which cached_property does not allow
class Curve:
    """What was learned of the vectors of one set of weights.

    Made by `models/calibrate.py` for the package and by `streamproc calibrate` for a user.

    `mean` (dim,) is that of the training persons. Their covariance within persons, scaled to trace
    1, is `basis_variances` (k,) along the unit rows of `basis` (k, dim) and `rest_variance` in
    every other direction. `within_track_trace` is the trace of the covariance within tracks.

    `arrival_coefficients` are an intercept and the weight of the similarity. `pair_coefficients`
    are an intercept and the weights of `GalleryScorer.pair_features`, `closing_coefficients` those
    of `GalleryScorer.features`. `beta_coefficients` calibrate what the last give, see
    `beta_calibrate`. Where there is `linking`, pairs of closed videos are judged by it instead
    (`gallery.linking`): the coefficients of closing count for curves of users. Where there is
    `purity`, tracks that hold two people are told by it.

    Raises ValueError where shapes or lengths do not fit together.
    """

    mean: Float32Array
    basis: Float32Array
    basis_variances: Float32Array
    rest_variance: float
    within_track_trace: float
    arrival_coefficients: tuple[float, float]
    pair_coefficients: tuple[float, ...]
    closing_coefficients: tuple[float, ...]
    beta_coefficients: tuple[float, float, float]
    linking: Coefficients | None = None
    purity: PurityModel | None = None

    def __post_init__(self) -> None:
        k, dim = self.basis.shape
        if self.mean.shape != (dim,) or self.basis_variances.shape != (k,):
            raise ValueError(
                f"expected mean ({dim},) and spread ({k},), "
                f"got {self.mean.shape}, {self.basis_variances.shape}"
            )
        lengths = (len(self.pair_coefficients), len(self.closing_coefficients))
        if lengths != (1 + PAIR_FEATURES, 1 + FEATURES):
            raise ValueError(
                f"expected {1 + PAIR_FEATURES} and {1 + FEATURES} coefficients, "
                f"got {self.pair_coefficients}, {self.closing_coefficients}"
            )

    @cached_property
    def calibration_id(self) -> str:
        """Stands for everything that decides the probability of a pair."""
        said = self.to_json()
        said.pop("purity", None)
        return hash_of(METHOD, said)[:16]

    def __repr__(self) -> str:
        return f"Curve({self.calibration_id}, basis {self.basis.shape})"

    def looks(self) -> LooksModel:
        """Return what was learned of the vectors, as `gallery.linking` takes it."""
        basis = self.basis.astype(np.float64)
        variances = self.basis_variances.astype(np.float64)
        return LooksModel(self.mean.astype(np.float64), basis, variances, self.rest_variance)

    @cached_property
    def pair_model(self) -> PairModel | None:
        """What judges the pairs of closed videos, None where the curve's own coefficients do."""
        return None if self.linking is None else PairModel.of(self.looks(), self.linking)

    @cached_property
    def track_judge(self) -> TrackJudge | None:
        """What tells tracks that hold two people, None where nothing was learned of them."""
        return None if self.purity is None else TrackJudge(self.looks().mean, self.purity)

    def covariance(self) -> Float64Array:
        """Return the covariance within persons (dim, dim), of trace 1."""
        basis = self.basis.astype(np.float64)
        above_rest = self.basis_variances - self.rest_variance
        rest = self.rest_variance * np.eye(len(self.mean))
        covariance: Float64Array = (basis.T * above_rest) @ basis + rest
        return covariance

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON values; arrays as base64 of little-endian float32.

        The keys are older than the names of the fields. They must stay: they are part of
        `calibration_id`.
        """
        linking = {} if self.linking is None else {"linking": self.linking.to_json()}
        purity = {} if self.purity is None else {"purity": self.purity.to_json()}
        return {
            "method": METHOD,
            "dim": len(self.mean),
            "mean": _to_base64(self.mean),
            "basis": _to_base64(self.basis),
            "spread": _to_base64(self.basis_variances),
            "rest": self.rest_variance,
            "part_trace": self.within_track_trace,
            "arrival": list(self.arrival_coefficients),
            "alone": list(self.pair_coefficients),
            "closed": list(self.closing_coefficients),
            "bent": list(self.beta_coefficients),
            **linking,
            **purity,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; raises ValueError for anything else."""
        try:
            _check_method(values["method"])
            intercept, slope = map(float, values["arrival"])
            shift, low, high = map(float, values["bent"])
            curve = cls(
                mean=_from_base64(values["mean"]),
                basis=_from_base64(values["basis"]).reshape(-1, int(values["dim"])),
                basis_variances=_from_base64(values["spread"]),
                rest_variance=float(values["rest"]),
                within_track_trace=float(values["part_trace"]),
                arrival_coefficients=(intercept, slope),
                pair_coefficients=tuple(map(float, values["alone"])),
                closing_coefficients=tuple(map(float, values["closed"])),
                beta_coefficients=(shift, low, high),
                linking=Coefficients.from_json(linking)
                if (linking := values.get("linking"))
                else None,
                purity=PurityModel.from_json(purity) if (purity := values.get("purity")) else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected a curve, got one without or with another {error}"
            ) from error
        curve._check_numbers()
        return curve

    def _check_numbers(self) -> None:
        numbers = [
            self.rest_variance,
            self.within_track_trace,
            *self.arrival_coefficients,
            *self.pair_coefficients,
            *self.closing_coefficients,
            *self.beta_coefficients,
        ]
        arrays = (self.mean, self.basis, self.basis_variances, np.array(numbers))
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("expected finite coefficients and arrays")
        _, low, high = self.beta_coefficients
        if low < 0 or high < 0:
            raise ValueError(f"expected slopes that do not fall, got {low} and {high}")


def _check_method(method: object) -> None:
    if method != METHOD:
        raise ValueError(
            f"expected the method {METHOD!r}, got {method!r:.80}; "
            "fit it anew with streamproc calibrate"
        )


def _to_base64(values: Float32Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _from_base64(text: str) -> Float32Array:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def sigmoid(log_odds: Float64Array) -> Float64Array:
    """Return the probabilities that log-odds stand for."""
    clipped = np.clip(log_odds, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    probabilities: Float64Array = 1 / (1 + np.exp(-clipped))
    return probabilities


def beta_calibrate(
    log_odds: Float64Array, coefficients: tuple[float, float, float]
) -> Float64Array:
    """Return log-odds x after beta calibration (Kull, Silva Filho and Flach, 2017).

    That is `shift` - `low` ln(1 + exp(-x)) + `high` ln(1 + exp(x)): low log-odds get the slope
    `low`, high ones the slope `high`. With `NO_BETA` they stay as they are.
    """
    shift, low, high = coefficients
    calibrated: Float64Array = (
        shift - low * np.logaddexp(0, -log_odds) + high * np.logaddexp(0, log_odds)
    )
    return calibrated


def curves_to_json(curves: Mapping[str, Curve]) -> bytes:
    """Return the content of the file that `load_curves` reads."""
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
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: expected calibration curves by weights ({reason})") from error
