"""What closing a gallery costs: `matcher_speed.py --closing` runs this, on the code of any commit.

It prints processor seconds of the closing of one video, for galleries of 1,000 persons who are in
pieces, and the number of events that it comes to. Older code ignores what it does not know of an
event, such as the trajectory.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from streamproc.events import PersonEmbedding, VideoClosed
from streamproc.gallery import Calibration, Gallery, apply, load_curves

PERSONS = 1000
LOADS = {"200 people in 5 pieces": (200, 0.6), "100 people in 10 pieces": (100, 0.6)}
"""How many people, and how far the vectors of one lie apart."""
TIMES = 5
TIME = "2026-11-24T12:00:00Z"
WEIGHTS = "382e20ac6011b656f3f663a7508844e14e5db84356e7ca292f3873d96208696f"
DIM = 512


def packed(values: np.ndarray) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def unit(values: np.ndarray) -> np.ndarray:
    """The rows with length 1."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def persons(people: int, apart: float, *, video: str = "v") -> list[PersonEmbedding]:
    """Persons in pieces who walk through the picture, and who was seen beside whom.

    The people are the same in every video.
    """
    rng = np.random.default_rng(1)
    looks = rng.normal(size=(people, DIM)) + 0.9 * rng.normal(size=DIM)
    rng = np.random.default_rng([1, *video.encode()])
    made = []
    for number in range(PERSONS):
        parts = looks[number % people] + apart * rng.normal(size=DIM)
        parts = unit(parts + 0.1 * rng.normal(size=(4, DIM)))
        first = int(rng.integers(0, 15_000))
        frames = np.arange(first, first + 60)
        left = rng.uniform(0, 1500) + 3 * np.arange(60)
        boxes = np.stack([left, left * 0 + 200, left + 40, left * 0 + 300], axis=1)
        beside = [
            other
            for other in range(PERSONS)
            if other % people != number % people and (number * other) % 97 == 0
        ]
        event = {
            "gallery_id": "g",
            "video_id": video,
            "run_id": "r",
            "submitted_at": TIME,
            "person_id": number,
            "person_key": f"{video}/{number}",
            "vector": {"data": packed(unit(parts.mean(0))), "dim": DIM},
            "model": {"name": "own", "weights_sha256": WEIGHTS},
            "crops": [crop(int(frame)) for frame in frames[::8]],
            "crop_count": 8,
            "segments": {"data": packed(parts), "shape": [4, DIM], "crop_counts": [2] * 4},
            "first_frame_index": first,
            "last_frame_index": first + 59,
            "first_seen_seconds": first / 25,
            "last_seen_seconds": (first + 59) / 25,
            "frames_tracked": 60,
            "seen_with": beside,
            "trajectory": {
                "frame_indices": frames.tolist(),
                "data": packed(boxes),
                "width_px": 1920,
                "height_px": 1080,
                "frames_per_second": 25,
            },
        }
        made.append(PersonEmbedding.from_json(json.dumps(event).encode()))
    return made


def ending(video: str) -> VideoClosed:
    """The closing of a video of `persons`."""
    return VideoClosed.make(
        gallery_id="g",
        video_id=video,
        run_id="r",
        submitted_at=TIME,
        outcome="done",
        person_ids=list(range(PERSONS)),
        frame_count=15_100,
    )


def crop(frame: int) -> dict[str, object]:
    """What an event says of a crop."""
    box = [10.5, 20.5, 50.5, 120.5]
    return {"frame_index": frame, "pts_seconds": frame / 25, "box_xyxy": box, "quality": 0.7}


def measure(people: int, apart: float) -> tuple[float, int]:
    """Processor seconds of the closing, the least of some, and how many events it comes to."""
    curves = load_curves(Path("models/calibration.json"))  # of the checkout that it runs in
    calibration = Calibration(curves)
    gallery = Gallery("g")
    settings = {"similarity_threshold": 0.7, "occurred_at": TIME, "calibration": calibration}
    for event in persons(people, apart):
        gallery.write(apply(gallery, event, **settings).writes)
    end = ending("v")
    seconds = []
    for _ in range(TIMES):
        began = time.process_time()
        result = apply(gallery, end, **settings)
        seconds.append(time.process_time() - began)
    return min(seconds), len(result.events)


def main() -> None:
    """Print a line for each load."""
    for name, load in LOADS.items():
        seconds, events = measure(*load)
        print(f"closing {PERSONS}, {name}: {seconds:.3f} s ({events} events)")


if __name__ == "__main__":
    main()
