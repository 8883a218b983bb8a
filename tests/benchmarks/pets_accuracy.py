"""Recall and precision of the candidates of PETS09-S2L1 at defaults, for each weights file at hand.

12 of the 171 pairs of tracks are the same person. PETS is never trained or fitted on. Beside the
candidates as they are published stands what the similarity alone would give, and the same with 8
evenly spaced crops.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
from common import SHARED, pets, print_machine

from streamproc import replay
from streamproc.crops import buckets

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.events import DuplicateCandidate

WEIGHTS = {
    "ours (default)": None,
    "A, published MSMT17": "osnet_x0_25_msmt17.pth",
    "B, published MSMT17": "osnet_x0_25_msmt17.B.converted.pt",
}
TRUE_PAIRS = 12


def evenly(crops: tuple[object, ...], count: int) -> tuple[int, ...]:
    """Positions of `count` evenly spaced crops."""
    return tuple(np.unique(np.linspace(0, len(crops) - 1, count).round().astype(int)).tolist())


def figures(right: list[bool]) -> str:
    """Recall and precision of a list of pairs."""
    return f"recall {sum(right) / TRUE_PAIRS:.2f} precision {np.mean(right) if right else 1:.2f}"


def is_one_person(event: DuplicateCandidate, groups: dict[str, int]) -> bool:
    """Whether the two tracks of a candidate are one person; `groups` are the persons by id."""
    a, b = event.persons
    return groups[str(a.person_id)] == groups[str(b.person_id)]


def best_f1(right: list[bool]) -> float:
    """The best F1 of all lists that end at some place of this sorted one."""
    true = np.cumsum(right)
    chosen = np.arange(1, len(right) + 1)
    return float((2 * true / (chosen + TRUE_PAIRS)).max())


def candidates(clip: tuple[Path, Path], weights: str | None, **options: float) -> list:
    """What is found, the most similar first."""
    video, tracks = clip
    result = replay(video, persons=tracks, clustering__osnet_model=weights, **options)
    return sorted(result.candidates, key=lambda event: -event.similarity)


def main() -> None:
    """Print a line for each weights file and each way to choose crops."""
    clip = pets()
    if clip is None:
        sys.exit("needs the research data in ../shared")
    print_machine()
    identity = json.loads((SHARED / "data" / "gt" / "PETS09-S2L1.identity.json").read_text())
    groups = identity["track_to_person"]
    by_quality = buckets.choose_embedded
    for name, file in WEIGHTS.items():
        weights = None if file is None else str(SHARED / "models" / file)
        for way, choose in (("by quality", by_quality), ("evenly spaced", evenly)):
            buckets.choose_embedded = choose
            published = candidates(clip, weights)
            likely = [event for event in published if event.band == "likely"]
            by_similarity = candidates(clip, weights, clustering__min_probability=0.0)
            right = {
                what: [is_one_person(event, groups) for event in events]
                for what, events in (
                    ("candidates", published),
                    ("likely", likely),
                    ("similarity above 0.70 alone", by_similarity),
                )
            }
            parts = [f"{what} {figures(pairs)}" for what, pairs in right.items()]
            best = best_f1(right["similarity above 0.70 alone"])
            print(f"{name}, {way}: {'; '.join(parts)}, best F1 {best:.2f}", flush=True)


if __name__ == "__main__":
    main()
