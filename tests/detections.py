"""How right detections are: average precision against the truth of the shared videos."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamproc.networks.images import resize
from streamproc.tracks.detection.boxes import iou_matrix
from streamproc.video import Limits, open_video

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from streamproc.tracks.detection.boxes import Detections

NO_BOXES = np.zeros((0, 4), np.float32)


class StillPicture:
    """A picture file as a frame."""

    frame_index = 0
    pts_seconds = 0.0

    def __init__(self, path) -> None:
        self._pixels = np.asarray(Image.open(path).convert("RGB"))
        self.height, self.width = self._pixels.shape[:2]

    def crop_rgb(self, box):
        x0, y0, x1, y1 = box
        return self._pixels[y0:y1, x0:x1]

    def scaled_rgb(self, width, height):
        return resize(self._pixels, height, width)


def truth_of_video(path: Path) -> dict[int, np.ndarray]:
    """Return the boxes xyxy of each frame (from 0) of a MOT Challenge text."""
    boxes = defaultdict(list)
    for line in path.read_text().split():
        values = [float(value) for value in line.split(",")]
        if values[6] != 0:
            x, y, width, height = values[2:6]
            boxes[int(values[0]) - 1].append([x, y, x + width, y + height])
    return {frame: np.array(rows, np.float32) for frame, rows in boxes.items()}


def frames_of_video(video_path: Path, truth_path: Path, every: int) -> Iterator:
    """Yield frame, true boxes and boxes that do not count, of every so many frames."""
    truth = truth_of_video(truth_path)
    video = open_video(video_path, limits=Limits(), decode_threads=1)
    try:
        for frame in video.frames(np.arange(0, video.frame_count, every)):
            yield frame, truth.get(frame.frame_index, NO_BOXES), NO_BOXES
    finally:
        video.close()


def frames_of_mot17(folder: Path) -> Iterator:
    """Yield the same of MOT17-mini: people seen by at least .3 count, parts of others do not."""
    for sequence in sorted(folder.iterdir()):
        if not (sequence / "gt").is_dir():
            continue
        people, ignored = defaultdict(list), defaultdict(list)
        for line in (sequence / "gt/gt.txt").read_text().split():
            values = [float(value) for value in line.split(",")]
            x, y, width, height = values[2:6]
            box = [x, y, x + width, y + height]
            if values[7] == 1 and values[6] == 1 and values[8] >= 0.3:
                people[int(values[0])].append(box)
            elif values[7] in {1, 2, 7, 8, 12}:
                ignored[int(values[0])].append(box)
        for path in sorted((sequence / "img1").glob("*.jpg")):
            number = int(path.stem)
            rows = (np.array(kind[number], np.float32).reshape(-1, 4) for kind in (people, ignored))
            yield StillPicture(path), *rows


def average_precision(found: Iterable[tuple[Detections, np.ndarray, np.ndarray]]) -> float:
    """Return AP50: the area under precision over recall, boxes taken by falling confidence.

    A box is right with an IoU of at least .5 to a true box that no better one has; one on a box
    that does not count is left out.
    """
    rows = []
    people = 0
    for detections, truth, ignored in found:
        people += len(truth)
        free = np.ones(len(truth), bool)
        ious = iou_matrix(detections.boxes_xyxy, truth)
        ignored_ious = iou_matrix(detections.boxes_xyxy, ignored).max(1, initial=0)
        for row, confidence in enumerate(detections.confidences.tolist()):
            overlap = np.where(free, ious[row], -1)
            if overlap.max(initial=-1) >= 0.5:
                free[overlap.argmax()] = False
                rows.append((confidence, True))
            elif ignored_ious[row] < 0.5:
                rows.append((confidence, False))
    rows.sort(key=lambda row: -row[0])
    right = np.cumsum([is_right for _, is_right in rows])
    precision = right / np.arange(1, len(rows) + 1)
    best_later = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right / people, prepend=0) * best_later).sum())
