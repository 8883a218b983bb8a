"""How detectors of different makers take a picture and say where people are.

Each layout is recognised by the inputs and outputs of the network, and checked by one run on an
empty picture. Whatever is none of them is refused with what was found. Person is class 0, as in
COCO's order of classes and in networks that know people alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamproc.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamproc.networks.pictures import PictureSession, Port
    from streamproc.types import Float32Array, Uint8Array

    Array = npt.NDArray[Any]

GRID_PX = 32
"""Widths and heights of pictures are multiples of the coarsest stride."""
STRIDES = (8, 16, 32)
_PERSON = 0
_CHANNELS = 3
_PICTURE_AXES = 4  # n, c, h, w
_PICTURE_AND_SIZE = 2  # inputs of RT-DETR
_EXPECTED = (
    "expected a detector as YOLOX exports it (images to [n, anchors, 5 + classes]), as ultralytics "
    "does ([n, 4 + classes, anchors]), or as RT-DETR does (images and orig_target_sizes to labels, "
    "boxes and scores)"
)

Found = tuple["Float32Array", "Float32Array"]
"""Boxes (n, 4) xyxy in pixels of the network's picture, and confidences (n,)."""


class Layout(Protocol):
    """What one kind of network takes and gives. `name` is part of a run's identity."""

    name: str

    def inputs(self, picture: Uint8Array) -> Mapping[str, Array]:
        """Return the network's inputs for a letter-boxed picture (h, w, 3) RGB."""
        ...

    def read(self, outputs: Sequence[Array], height: int, width: int) -> Found:
        """Return what the outputs say of a picture of this size."""
        ...


@dataclass(frozen=True, slots=True)
class OwnLayout:
    """streamproc's own: scores (1, a) and boxes (1, a, 4) in pixels; BGR from 0 to 255."""

    input_name: str
    name = "streamproc"

    def inputs(self, picture: Uint8Array) -> Mapping[str, Array]:
        """Return BGR planes from 0 to 255."""
        return {self.input_name: _bgr_planes(picture)}

    def read(self, outputs: Sequence[Array], height: int, width: int) -> Found:
        """Return them as they are."""
        del height, width
        scores, boxes = outputs
        return boxes[0], scores[0]


@dataclass(frozen=True, slots=True)
class YoloxLayout:
    """YOLOX's export (Ge et al., 2021), (1, a, 5 + classes): box, objectness, classes.

    A box is centre and size. By default these are in strides from the anchor's cell, the size as a
    logarithm; `is_decoded`: in pixels, as `--decode_in_inference` gives. BGR from 0 to 255.
    """

    input_name: str
    is_decoded: bool
    name = "yolox"

    def inputs(self, picture: Uint8Array) -> Mapping[str, Array]:
        """Return BGR planes from 0 to 255."""
        return {self.input_name: _bgr_planes(picture)}

    def read(self, outputs: Sequence[Array], height: int, width: int) -> Found:
        """Decode the boxes, and multiply objectness and class."""
        rows = outputs[0][0]
        centres, sizes = rows[:, :2], rows[:, 2:4]
        if not self.is_decoded:
            cells, strides = anchors_of(height, width)
            centres = (centres + cells) * strides
            sizes = np.exp(np.minimum(sizes, 10)) * strides
        confidences = rows[:, 4] * rows[:, 5 + _PERSON]
        return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1), confidences


@dataclass(frozen=True, slots=True)
class UltralyticsLayout:
    """ultralytics' export, (1, 4 + classes, a): centre and size in pixels, classes. RGB, 0 to 1."""

    input_name: str
    name = "ultralytics"

    def inputs(self, picture: Uint8Array) -> Mapping[str, Array]:
        """Return RGB planes from 0 to 1."""
        return {self.input_name: _rgb_planes(picture)}

    def read(self, outputs: Sequence[Array], height: int, width: int) -> Found:
        """Return corners and the person class."""
        del height, width
        columns = outputs[0][0]
        centres, sizes = columns[:2].T, columns[2:4].T
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
        return boxes, columns[4 + _PERSON]


@dataclass(frozen=True, slots=True)
class RtDetrLayout:
    """RT-DETR's export (Zhao et al., CVPR 2024), and that of D-FINE and DEIM. RGB from 0 to 1.

    The network gets the size of the picture, (width, height), and gives boxes in its pixels.
    """

    input_name: str
    size_name: str
    output_names: tuple[str, ...]
    name = "rt-detr"

    def inputs(self, picture: Uint8Array) -> Mapping[str, Array]:
        """Return RGB planes from 0 to 1, and the picture's own size."""
        height, width = picture.shape[:2]
        size = np.array([[width, height]], np.int64)
        return {self.input_name: _rgb_planes(picture), self.size_name: size}

    def read(self, outputs: Sequence[Array], height: int, width: int) -> Found:
        """Return the boxes of people."""
        del height, width
        by_name = dict(zip(self.output_names, outputs, strict=True))
        is_person = by_name["labels"][0] == _PERSON
        return by_name["boxes"][0][is_person], by_name["scores"][0][is_person]


def anchors_of(height: int, width: int) -> tuple[Float32Array, Float32Array]:
    """Return column and row (a, 2) and stride (a, 1) of each anchor, in YOLOX's order."""
    cells = []
    strides = []
    for stride in STRIDES:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], 1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def anchor_count(height: int, width: int) -> int:
    """Return how many anchors a picture of this size has."""
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def fixed_size(session: PictureSession) -> tuple[int | None, int | None]:
    """Return height and width of the one size that a network takes, None where any will do.

    Raises WeightsError if its first input takes no picture.
    """
    picture = session.inputs[0] if session.inputs else None
    is_batch = picture is not None and len(picture.shape) == _PICTURE_AXES
    if picture is None or not is_batch or picture.type != "tensor(float)":
        raise _refused(session)
    batch, channels, height, width = picture.shape
    fits_batch = batch in {None, 1}
    fits_grid = all(size is None or size % GRID_PX == 0 for size in (height, width))
    if not fits_batch or channels not in {None, _CHANNELS} or not fits_grid:
        raise _refused(session)
    return height, width


def layout_of(session: PictureSession, height: int, width: int) -> Layout:
    """Recognise a network's layout, and run it once on a picture of this size.

    Raises WeightsError with what was found where it is none that is known.
    """
    picture = np.full((height, width, _CHANNELS), 114, np.uint8)
    names = tuple(port.name for port in session.outputs)
    first = session.inputs[0].name
    candidate: Layout
    has_size = len(session.inputs) == _PICTURE_AND_SIZE
    if has_size and set(names) >= {"labels", "boxes", "scores"}:
        candidate = RtDetrLayout(first, session.inputs[1].name, names)
        outputs = session.probe(candidate.inputs(picture))
        boxes, scores = (outputs[names.index(name)] for name in ("boxes", "scores"))
        if boxes.shape == (1, scores.shape[-1], 4):
            return candidate
    elif len(session.inputs) == 1 and names == ("scores", "boxes"):
        candidate = OwnLayout(first)
        scores, boxes = session.probe(candidate.inputs(picture))
        if boxes.shape == (*scores.shape, 4):
            return candidate
    elif len(session.inputs) == 1 and len(names) == 1:
        return _of_one_output(session, picture)
    raise _refused(session)


def _of_one_output(session: PictureSession, picture: Uint8Array) -> Layout:
    height, width = picture.shape[:2]
    first = session.inputs[0].name
    count = anchor_count(height, width)
    (output,) = session.probe(YoloxLayout(first, is_decoded=False).inputs(picture))
    if output.ndim == 3:  # noqa: PLR2004 - n, anchors, values or the other way round
        _, rows, columns = output.shape
        if rows == count and columns > 5:  # noqa: PLR2004 - box, objectness, at least a class
            # Centres in pixels are spread over the picture, offsets from cells are small.
            is_decoded = float(np.ptp(output[0, :, 0])) > width / 2
            return YoloxLayout(first, is_decoded)
        if columns == count and rows > 4:  # noqa: PLR2004 - box, at least a class
            return UltralyticsLayout(first)
    raise _refused(session, f", here of shape {output.shape}")


def _refused(session: PictureSession, more: str = "") -> WeightsError:
    def listed(ports: Sequence[Port]) -> str:
        return ", ".join(str(port) for port in ports[:6]) or "nothing"

    found = f"inputs {listed(session.inputs)}; outputs {listed(session.outputs)}{more}"
    return WeightsError(f"{session.name}: {_EXPECTED}, got {found}")


def _bgr_planes(picture: Uint8Array) -> Float32Array:
    planes: Float32Array = picture[..., ::-1].transpose(2, 0, 1).astype(np.float32)[None]
    return planes


def _rgb_planes(picture: Uint8Array) -> Float32Array:
    planes: Float32Array = picture.transpose(2, 0, 1).astype(np.float32)[None]
    planes /= 255
    return planes
