"""Small drawn scenes: people who walk, and the broken, shifted and swapped tracks of a tracker."""

from __future__ import annotations

import numpy as np

from streamproc.types import Track

SEEDS = tuple(range(6))


def drawn_scene(seed: int) -> tuple[list[Track], list[Track], list[tuple[int, int]]]:
    """Tracks and truth of 60 frames, and the pairs of track ids that are one person."""
    rng = np.random.default_rng(seed)
    truth = []
    tracks = []
    pairs = []
    for person in range(5):
        first = int(rng.integers(0, 20))
        frames = np.arange(first, int(rng.integers(40, 60)))
        x = rng.uniform(0, 300) + rng.uniform(-2, 2) * frames
        y = rng.uniform(0, 80) + rng.normal(0, 0.5, len(frames)).cumsum()
        boxes = np.stack([x, y, x + 40, y + 90], axis=1)
        truth.append(track(person, frames, boxes))
        cuts = np.sort(rng.choice(np.arange(first + 5, 38), 2, replace=False))
        pieces = np.split(np.arange(len(frames)), np.searchsorted(frames, cuts))
        for number, piece in enumerate(pieces):
            rows = piece[rng.random(len(piece)) < 0.9]
            shift = rng.normal(0, 6, (len(rows), 1)) + rng.normal(0, 2, (len(rows), 4))
            tracks.append(track(10 * person + number, frames[rows], boxes[rows] + shift))
        pairs += [(10 * person, 10 * person + number) for number in (1, 2)]
    return tracks, truth, pairs


def track(person_id: int, frames: np.ndarray, boxes: np.ndarray) -> Track:
    """A track of these boxes, all of them certain."""
    return Track(person_id, frames, boxes.astype(np.float32), np.ones(len(frames), np.float32))
