"""Augmented crops of labelled pictures, without end: what the detector is trained on."""

from __future__ import annotations

import json
import math
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREY = 114
_MOSAIC_SHARE = 0.25
_AIMED_SHARE = 0.6
_LEAST_SCALE = 0.45
"""Pictures that are shrunk by more are shrunk in two steps, so that small people stay whole."""
_LEAST_PART = 0.05
_CLEAR_PART = 0.4
"""Of a box: what is cut off by more than this is neither a person nor background."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """A part of a crop that one picture fills, and how large the picture may be in it."""

    left: int
    top: int
    width: int
    height: int
    least_scale: float
    most_scale: float


class LabelledCrops(torch.utils.data.IterableDataset[Any]):
    """Batches: crops (n, 3, size, size) uint8 BGR, and boxes (k, 7).

    A box's row is crop, x1, y1, x2, y2, confidence, whether it is to be ignored. The tar holds
    pictures and `labels.json`: {name: [[x1, y1, x2, y2, confidence, ignore], ...]}. Sources with
    few pictures are drawn more often, and pictures with people.
    """

    def __init__(self, tar_path: Path, *, size: int, batch: int, seed: int) -> None:
        super().__init__()
        self._size = size
        self._batch = batch
        self._seed = seed
        with tarfile.open(tar_path) as tar:
            labels = json.loads(_member(tar, "labels.json"))
            names = sorted(labels)
            self._pictures = [np.frombuffer(_member(tar, name), np.uint8) for name in names]
        self._boxes = [np.array(labels[name], np.float32).reshape(-1, 6) for name in names]
        sources = [name.split("_")[0] for name in names]
        counts = {source: sources.count(source) for source in set(sources)}
        people = [min((boxes[:, 5] == 0).sum(), 10) for boxes in self._boxes]
        weights = [
            (0.4 + 0.2 * count) / math.sqrt(counts[source])
            for count, source in zip(people, sources, strict=True)
        ]
        self._shares = np.array(weights) / sum(weights)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng(self._seed)
        cv2.setNumThreads(1)
        while True:
            crops = np.empty((self._batch, self._size, self._size, 3), np.uint8)
            rows = []
            for position in range(self._batch):
                crop, boxes = self._crop(rng)
                crops[position] = _recoloured(rng, crop)
                rows.append(np.insert(boxes, 0, position, axis=1))
            planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2))
            yield torch.from_numpy(planes), torch.from_numpy(np.concatenate(rows))

    def _crop(self, rng: np.random.Generator) -> tuple[Array, Array]:
        size = self._size
        canvas = np.full((size, size, 3), GREY, np.uint8)
        windows = [Window(0, 0, size, size, 0.85, 2.8)]
        if rng.random() < _MOSAIC_SHARE:
            x, y = (int(rng.uniform(0.35, 0.65) * size) for _ in range(2))
            corners = [(0, 0, x, y), (x, 0, size - x, y)]
            corners += [(0, y, x, size - y), (x, y, size - x, size - y)]
            windows = [Window(*corner, 0.9, 3.2) for corner in corners]
        boxes = [self._place(rng, canvas, window) for window in windows]
        return canvas, np.concatenate(boxes).astype(np.float32)

    def _place(self, rng: np.random.Generator, canvas: Array, window: Window) -> Array:
        """Draw a picture into a window; return its boxes (k, 6) in the crop."""
        index = int(rng.choice(len(self._pictures), p=self._shares))
        picture = cv2.imdecode(self._pictures[index], cv2.IMREAD_COLOR)
        boxes = self._boxes[index].copy()
        scale = max(window.width, window.height) / max(picture.shape[:2])
        least, most = math.log(window.least_scale), math.log(window.most_scale)
        scale *= math.exp(rng.uniform(least, most))
        aspect = math.exp(rng.normal(0, 0.06))
        scales = np.array([scale * aspect, scale / aspect])
        if scales.min() < _LEAST_SCALE:
            first = scales / 0.6
            before = picture.shape
            picture = cv2.resize(
                picture, None, fx=first[0], fy=first[1], interpolation=cv2.INTER_AREA
            )
            done = np.array([picture.shape[1] / before[1], picture.shape[0] / before[0]])
            boxes[:, :4] *= np.tile(done, 2)
            scales = scales / done
        is_flipped = rng.random() < 0.5  # noqa: PLR2004 - a coin
        matrix = _matrix(rng, picture, boxes, scales, window, is_flipped=is_flipped)
        right, bottom = window.left + window.width, window.top + window.height
        canvas[window.top : bottom, window.left : right] = cv2.warpAffine(
            picture, matrix, (window.width, window.height), borderValue=(GREY, GREY, GREY)
        )
        return _moved(boxes, matrix, window)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _matrix(
    rng: np.random.Generator,
    picture: Array,
    boxes: Array,
    scales: Array,
    window: Window,
    *,
    is_flipped: bool,
) -> Array:
    """Return where a picture's pixels go, (2, 3): often so that a person is in the window."""
    size = np.array([picture.shape[1], picture.shape[0]]) * scales
    room = np.array([window.width, window.height]) - size
    offset = rng.uniform(np.minimum(0, room), np.maximum(0, room))
    people = boxes[boxes[:, 5] == 0]
    if len(people) and rng.random() < _AIMED_SHARE:
        person = people[rng.integers(len(people))]
        centre = (person[:2] + person[2:4]) / 2 * scales
        if is_flipped:
            centre[0] = size[0] - centre[0]
        wanted = np.array([window.width, window.height]) * rng.uniform(0.2, 0.8, 2) - centre
        offset = np.clip(wanted, np.minimum(0, room), np.maximum(0, room))
    x, y = scales
    if is_flipped:
        return np.array([[-x, 0, offset[0] + size[0]], [0, y, offset[1]]], np.float32)
    return np.array([[x, 0, offset[0]], [0, y, offset[1]]], np.float32)


def _moved(boxes: Array, matrix: Array, window: Window) -> Array:
    """Return the boxes where they are in the crop; those cut off in part are to be ignored."""
    moved = boxes.copy()
    moved[:, [0, 2]] = boxes[:, [0, 2]] * matrix[0, 0] + matrix[0, 2]
    moved[:, [1, 3]] = boxes[:, [1, 3]] * matrix[1, 1] + matrix[1, 2]
    if matrix[0, 0] < 0:
        moved[:, [0, 2]] = moved[:, [2, 0]]
    whole = (moved[:, 2:4] - moved[:, :2]).prod(1)
    moved[:, [0, 2]] = moved[:, [0, 2]].clip(0, window.width)
    moved[:, [1, 3]] = moved[:, [1, 3]].clip(0, window.height)
    part = (moved[:, 2:4] - moved[:, :2]).prod(1) / np.maximum(whole, 1)
    moved[part < _CLEAR_PART, 5] = 1
    moved[:, :4] += np.tile([window.left, window.top], 2)
    return moved[part > _LEAST_PART]


def _recoloured(rng: np.random.Generator, crop: Array) -> Array:
    """Change brightness, contrast and saturation a little; one crop in ten loses its colours."""
    pixels = crop.astype(np.float32)
    grey = pixels.mean(2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.6, 1.4)  # noqa: PLR2004 - one in ten
    pixels = grey + (pixels - grey) * saturation
    pixels = (pixels - GREY) * rng.uniform(0.7, 1.3) + GREY + rng.uniform(-25, 25)
    return pixels.clip(0, 255).astype(np.uint8)
