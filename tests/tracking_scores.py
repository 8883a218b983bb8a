"""HOTA (Luiten et al., "HOTA: A Higher Order Metric for Evaluating Tracking", IJCV 2021)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import lap
import numpy as np

from streamproc.tracks.detection.boxes import iou_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.types import FrameBoxes

Boxes = dict[int, tuple[np.ndarray, np.ndarray]]
"""By frame (from 0): ids (n,), boxes (n, 4)."""
NOBODY = (np.zeros(0, np.int64), np.zeros((0, 4)))
ALPHAS = np.arange(1, 20) / 20


def truth_of(path: Path) -> Boxes:
    """Read a MOT Challenge text; rows marked "do not count" are left out."""
    rows = defaultdict(list)
    for line in path.read_text().split():
        values = [float(value) for value in line.split(",")]
        if values[6] != 0:
            x, y, width, height = values[2:6]
            rows[int(values[0]) - 1].append((int(values[1]), x, y, x + width, y + height))
    return {
        frame: (np.array([row[0] for row in found]), np.array([row[1:] for row in found]))
        for frame, found in rows.items()
    }


def tracks_of(frames: list[FrameBoxes]) -> Boxes:
    """Return what a tracker gave, in the same form."""
    return {
        frame.frame_index: (frame.person_ids, frame.boxes_xyxy.astype(np.float64))
        for frame in frames
    }


def hota(truth: Boxes, tracks: Boxes) -> float:
    """Return the mean over IoU thresholds of sqrt(detection accuracy x association accuracy)."""
    people = np.unique(np.concatenate([ids for ids, _ in truth.values()]))
    ids = np.unique(np.concatenate([NOBODY[0], *(ids for ids, _ in tracks.values())]))
    frames = []
    potential = np.zeros((len(people), len(ids)))
    for frame in sorted(truth.keys() | tracks.keys()):
        true_ids, true_boxes = truth.get(frame, NOBODY)
        own_ids, own_boxes = tracks.get(frame, NOBODY)
        rows, columns = np.searchsorted(people, true_ids), np.searchsorted(ids, own_ids)
        similarity = iou_matrix(true_boxes, own_boxes)
        total = similarity.sum(0)[None] + similarity.sum(1)[:, None] - similarity
        potential[np.ix_(rows, columns)] += similarity / np.maximum(total, 1e-9)
        frames.append((rows, columns, similarity))
    of_person = np.bincount(np.concatenate([rows for rows, *_ in frames]), minlength=len(people))
    of_track = np.bincount(np.concatenate([cols for _, cols, _ in frames]), minlength=len(ids))
    alignment = potential / (of_person[:, None] + of_track[None] - potential)
    matches = np.zeros((len(ALPHAS), len(people), len(ids)))
    for rows, columns, similarity in frames:
        if similarity.size:
            score = alignment[np.ix_(rows, columns)] * similarity
            _, column_of, _ = lap.lapjv(1 - score, extend_cost=True)
            for row in np.flatnonzero(column_of >= 0):
                column = column_of[row]
                is_match = similarity[row, column] >= ALPHAS - 1e-9
                matches[:, rows[row], columns[column]] += is_match
    right = matches.sum((1, 2))
    detection = right / (of_person.sum() + of_track.sum() - right)
    unions = np.maximum(of_person[:, None] + of_track[None] - matches, 1)
    association = (matches * (matches / unions)).sum((1, 2)) / np.maximum(right, 1)
    return float(np.sqrt(detection * association).mean())
