"""What is found on PETS09-S2L1 at defaults, for each weights file at hand: recall and precision of the candidates.

12 of the 171 pairs of tracks are the same person. Beside ours stands the same with 8 evenly spaced crops.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from common import SHARED, pets, print_machine

from streamproc import replay
from streamproc.crops import buckets

WEIGHTS = {
    "ours (default)": None,
    "A, published MSMT17": "osnet_x0_25_msmt17.pth",
    "B, published MSMT17": "osnet_x0_25_msmt17.B.converted.pt",
}


def evenly(crops: tuple[object, ...], count: int) -> tuple[int, ...]:
    """Positions of `count` evenly spaced crops."""
    return tuple(np.unique(np.linspace(0, len(crops) - 1, count).round().astype(int)).tolist())


def main() -> None:
    """Print a line for each weights file and each way to choose crops."""
    found = pets()
    if found is None:
        sys.exit("needs the research data in ../shared")
    print_machine()
    groups = json.loads((SHARED / "data" / "gt" / "PETS09-S2L1.identity.json").read_text())["track_to_person"]
    by_quality = buckets.choose_embedded
    for name, file in WEIGHTS.items():
        for way, choose in (("evenly spaced", evenly), ("by quality", by_quality)):
            buckets.choose_embedded = choose
            result = replay(
                found[0],
                persons=found[1],
                clustering__osnet_model=None if file is None else str(SHARED / "models" / file),
            )
            right = [groups[str(pair.id_a)] == groups[str(pair.id_b)] for pair in result.pairs.candidates]
            hits, best = np.cumsum(right), 0.0
            if right:
                best = float((2 * hits / (np.arange(1, len(right) + 1) + 12)).max())
            print(f"{name}, {way}: recall {sum(right) / 12:.2f}, precision {np.mean(right):.2f}, best F1 {best:.2f}")


if __name__ == "__main__":
    main()
