"""Finds people in whole frames with one network; its own weights by default."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamproc.networks.devices import why_no_gpu
from streamproc.networks.gpu_pictures import open_gpu_pictures
from streamproc.networks.pictures import PictureSession
from streamproc.networks.weights import NetworkFamily
from streamproc.networks.weights import find_weights as find_network_weights
from streamproc.tracks.detection.boxes import Detections, rounded, suppress
from streamproc.tracks.detection.layouts import GRID_PX, fixed_size, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Any

    from streamproc.networks.devices import Device
    from streamproc.networks.gpu_pictures import PictureBackend
    from streamproc.networks.weights import Weights
    from streamproc.tracks.source import Picture
    from streamproc.types import Float32Array, Uint8Array

VERSION = 1
"""Of what is done around the network. Raise it with every change that finds other boxes with the
same weights and settings: it is part of a run's id."""
DEFAULT_NAME = "persondet_ours"
_FAMILY = NetworkFamily(
    name="a detector",
    architecture_prefix=("persondet", "yolox"),
    input_shape=(3, None, None),
    default_weights=DEFAULT_NAME,
    option="--detector",
    export=None,
    export_version=1,
)

LEAST_LONGEST_PX = 640
MOST_LONGEST_PX = 1088
LONGEST_SHARE = 17 / 30
"""1080p is looked at in 1088x608: small people need it, and more costs more than it finds."""
SUPPRESSION_IOU = 0.65
_GREY = 114
"""What the rest of a letter-boxed picture is filled with, as YOLOX was trained."""
_EXAMPLE_SHAPE = (3, 96, 160)


class InputSize(NamedTuple):
    """What the network sees of a video: the frame shrunk to this size, in a larger picture."""

    height: int
    width: int
    frame_height: int
    frame_width: int


def find_weights(
    spec: str | None, *, cache_folder: Path, models_folder: Path | None = None
) -> Weights:
    """Resolve `--detector`: see `networks.weights.find_weights`."""
    return find_network_weights(
        spec, _FAMILY, cache_folder=cache_folder, models_folder=models_folder
    )


class Detector:
    """One network in memory, for any number of videos. Safe to use from any thread."""

    def __init__(
        self,
        weights: Weights,
        *,
        threads: int = 0,
        min_confidence: float,
        longest_px: int = 0,
        suppression_iou: float = SUPPRESSION_IOU,
        device: Device = "cpu",
        no_gpu: Callable[[], str | None] = why_no_gpu,
        open_gpu: Callable[[Weights], PictureBackend] | None = None,
    ) -> None:
        """Load the network, and run it once.

        Boxes below `min_confidence` are left out, and those that overlap a more confident one by
        more than `suppression_iou`. `longest_px` is the longest side of what the network sees, 0
        for the one that suits the video; a network of a fixed size has its own. `device` = "auto"
        takes a GPU if torch can use one, for the package's own network. If it fails while it works,
        the CPU takes over. `no_gpu` and `open_gpu` look for the GPU and open it; tests pass their
        own.

        Raises WeightsError for a file that is no detector of a known layout. With "cuda" raises
        UsageError without a GPU or for another network, MachineError if the GPU cannot be used.
        """
        self._session = PictureSession(weights, _EXAMPLE_SHAPE, threads=threads)
        self._fixed = fixed_size(self._session)
        self._longest_px = longest_px
        self._min_confidence = min_confidence
        self._suppression_iou = suppression_iou
        self.name = weights.name
        self.weights_sha256 = self._session.source_sha256
        height, width = self._fixed
        self._layout = layout_of(self._session, height or 96, width or 160)
        self._gpu = open_gpu_pictures(
            weights,
            self.weights_sha256,
            self._submit_to_cpu,
            device=device,
            no_gpu=no_gpu,
            open_backend=open_gpu,
        )

    @property
    def device(self) -> str:
        """The device on which the network runs now."""
        return "cpu" if self._gpu is None else self._gpu.device

    @property
    def identity(self) -> str:
        """What stands for all that decides what is found: version, weights and settings."""
        return (
            f"{VERSION} {self.weights_sha256} {self._layout.name} {self._min_confidence} "
            f"{self._longest_px} {self._suppression_iou}"
        )

    def adjusted(self, *, min_confidence: float, longest_px: int) -> Detector:
        """Return one with other settings, which shares the network in memory."""
        other = copy.copy(self)
        other._min_confidence = min_confidence  # noqa: SLF001 - of the same class
        other._longest_px = longest_px  # noqa: SLF001 - as above
        return other

    def __repr__(self) -> str:
        return f"Detector({self.name}, {self._layout.name}, sha256 {self.weights_sha256[:8]})"

    def input_size(self, width: int, height: int) -> InputSize:
        """Return what the network sees of frames of this size."""
        longest = self._longest_px or default_longest_px(max(width, height))
        scale = longest / max(width, height)
        box_height, box_width = (
            fixed or GRID_PX * max(1, round(side * scale / GRID_PX))
            for fixed, side in zip(self._fixed, (height, width), strict=True)
        )
        scale = min(box_height / height, box_width / width)
        return InputSize(
            box_height,
            box_width,
            max(1, min(box_height, round(height * scale))),
            max(1, min(box_width, round(width * scale))),
        )

    def submit(self, frame: Picture) -> Future[list[Any]]:
        """Begin to look at a frame; `read` makes detections of what comes.

        The frame is shrunk here, in the thread to which it belongs.
        """
        size = self.input_size(frame.width, frame.height)
        shrunk = frame.scaled_rgb(size.frame_width, size.frame_height)
        if self._gpu is not None:
            return self._gpu.submit(_letter_boxed(shrunk, size))
        return self._session.submit(lambda: self._layout.inputs(_letter_boxed(shrunk, size)))

    def _submit_to_cpu(self, picture: Uint8Array) -> Future[list[Any]]:
        """Begin to look at a letter-boxed picture for a GPU that is lost."""
        return self._session.submit(lambda: self._layout.inputs(picture))

    def read(self, outputs: list[Any], width: int, height: int) -> Detections:
        """Make detections of the network's outputs for a frame of this size."""
        size = self.input_size(width, height)
        boxes, confidences = self._layout.read(outputs, size.height, size.width)
        keep = confidences > self._min_confidence / 2  # rounding comes first, then the threshold
        boxes, confidences = boxes[keep], confidences[keep]
        scale = np.array([width / size.frame_width, height / size.frame_height] * 2, np.float32)
        found = rounded(boxes * scale, np.clip(confidences, 0, 1))
        found = found.take(found.confidences >= self._min_confidence)
        return suppress(found.take(_usable(found.boxes_xyxy, width, height)), self._suppression_iou)

    def detect(self, frame: Picture) -> Detections:
        """Return the people in one frame. Raises MachineError if the network fails."""
        return self.read(self.submit(frame).result(), frame.width, frame.height)


def default_longest_px(longest_side_px: int) -> int:
    """Return the longest side of what the network sees of a video with this longest side."""
    wanted = GRID_PX * math.floor(longest_side_px * LONGEST_SHARE / GRID_PX)
    return min(max(wanted, LEAST_LONGEST_PX), MOST_LONGEST_PX)


def _letter_boxed(shrunk: Uint8Array, size: InputSize) -> Uint8Array:
    """Put a frame into the left top corner of the network's picture."""
    picture = np.full((size.height, size.width, 3), _GREY, np.uint8)
    picture[: size.frame_height, : size.frame_width] = shrunk
    return picture


def _usable(boxes: Float32Array, width: int, height: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which boxes (n, 4) are finite, at least a pixel wide and high, and in the frame."""
    left, top, right, bottom = boxes.T
    usable: np.ndarray[Any, np.dtype[np.bool_]] = (
        np.isfinite(boxes).all(1)
        & (right - left >= 1)
        & (bottom - top >= 1)
        & (left < width)
        & (top < height)
        & (right > 0)
        & (bottom > 0)
    )
    return usable
