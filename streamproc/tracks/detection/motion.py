"""Where tracks will be: Kalman filters of constant velocity, all tracks of a video at once.

Centre, width and height of a box move independently of each other, so each is a filter of two
numbers, value and velocity, and its covariance is three numbers. The noise is proportional to the
box's size, as in DeepSORT (Wojke et al., ICIP 2017) and BoT-SORT (Aharon et al., 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamproc.types import BoolArray, Float32Array, Float64Array, Int64Array

POSITION_NOISE = 1 / 20
VELOCITY_NOISE = 1 / 160
_FIRST_POSITION = 2
_FIRST_VELOCITY = 10
"""A new track's uncertainty, in multiples of the noise."""

# Rows of the state. The last three are the numbers of each filter's covariance.
_VALUE, _VELOCITY, _VALUE_VARIANCE, _COVARIANCE, _VELOCITY_VARIANCE = range(5)


class Motion:
    """The filters of n tracks. Velocities are per frame.

    All is in one array, (5, n, 4): the five numbers of each filter, for centre x, centre y, width
    and height. A frame has a dozen tracks, so it is the number of numpy's calls that takes time.
    """

    __slots__ = ("_state",)

    def __init__(self, state: Float64Array | None = None) -> None:
        self._state = np.zeros((5, 0, 4)) if state is None else state

    def __len__(self) -> int:
        count: int = self._state.shape[1]
        return count

    def add(self, boxes_xyxy: Float32Array) -> None:
        """Begin one more filter for each box (k, 4), at rest."""
        state = np.zeros((5, len(boxes_xyxy), 4))
        state[_VALUE] = _centred(boxes_xyxy)
        size = _sizes(state[_VALUE])
        state[_VALUE_VARIANCE] = (_FIRST_POSITION * POSITION_NOISE * size) ** 2
        state[_VELOCITY_VARIANCE] = (_FIRST_VELOCITY * VELOCITY_NOISE * size) ** 2
        self._state = np.concatenate([self._state, state], 1)

    def keep(self, rows: BoolArray) -> None:
        """Forget the filters of the other tracks."""
        self._state = self._state[:, rows]

    def hold_size(self, rows: BoolArray) -> None:
        """Let the size of these tracks no longer change, as of those that are not seen."""
        self._state[_VELOCITY, rows, 2:] = 0

    def predict(self) -> None:
        """Go on by one frame."""
        value, velocity, value_variance, covariance, velocity_variance = self._state
        variance = _sizes(value) ** 2
        value += velocity
        value_variance += 2 * covariance + velocity_variance + POSITION_NOISE**2 * variance
        covariance += velocity_variance
        velocity_variance += VELOCITY_NOISE**2 * variance
        np.maximum(value[:, 2:], 1, out=value[:, 2:])

    def correct(self, rows: Int64Array, boxes_xyxy: Float32Array) -> None:
        """Take the boxes (k, 4) in which the tracks of k `rows` were seen."""
        state = self._state[:, rows]
        value, velocity, value_variance, covariance, velocity_variance = state
        total = value_variance + POSITION_NOISE**2 * _sizes(value) ** 2
        gain = value_variance / total
        velocity_gain = covariance / total
        error = _centred(boxes_xyxy) - value
        value += gain * error
        velocity += velocity_gain * error
        velocity_variance -= velocity_gain * covariance
        value_variance *= 1 - gain
        covariance *= 1 - gain
        self._state[:, rows] = state

    def boxes_xyxy(self) -> Float64Array:
        """Return the boxes (n, 4) where the tracks are now."""
        value = self._state[_VALUE]
        half = value[:, 2:] / 2
        return np.concatenate([value[:, :2] - half, value[:, :2] + half], 1)


def _centred(boxes_xyxy: Float32Array) -> Float64Array:
    """Return centre and size (k, 4) of boxes (k, 4)."""
    corners = boxes_xyxy.astype(np.float64)
    first, last = corners[:, :2], corners[:, 2:]
    return np.concatenate([(first + last) / 2, last - first], 1)


def _sizes(value: Float64Array) -> Float64Array:
    """Return width, height, width, height (n, 4): what the noise of each number is relative to."""
    sizes: Float64Array = np.maximum(value[:, [2, 3, 2, 3]], 1)
    return sizes
