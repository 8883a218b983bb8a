"""What is found on PETS09-S2L1 at defaults, for each weights file at hand: recall and precision of the candidates.

12 of the 171 pairs of tracks are the same person. PETS is never trained or fitted on. Beside the
candidates as they are published stands what the similarity alone would give, and the same with 8
evenly spaced crops.
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
TRUE_PAIRS = 12


def evenly(crops: tuple[object, ...], count: int) -> tuple[int, ...]:
    """Positions of `count` evenly spaced crops."""
    return tuple(np.unique(np.linspace(0, len(crops) - 1, count).round().astype(int)).tolist())


def figures(right: list[bool]) -> str:
    """Recall and precision of a list of pairs."""
    return f"recall {sum(right) / TRUE_PAIRS:.2f} precision {np.mean(right) if right else 1:.2f}"


def main() -> None:
    """Print a line for each weights file and each way to choose crops."""
    found = pets()
    if found is None:
        sys.exit("needs the research data in ../shared")
    print_machine()
    groups = json.loads((SHARED / "data" / "gt" / "PETS09-S2L1.identity.json").read_text())[
        "track_to_person"
    ]
    by_quality = buckets.choose_embedded
    for name, file in WEIGHTS.items():
        for way, choose in (("by quality", by_quality), ("evenly spaced", evenly)):
            buckets.choose_embedded = choose
            weights = None if file is None else str(SHARED / "models" / file)
            said = {}
            for least in (None, 0.0):
                options = {} if least is None else {"clustering__min_probability": least}
                result = replay(
                    found[0], persons=found[1], clustering__osnet_model=weights, **options
                )
                pairs = sorted(result.pairs.candidates, key=lambda pair: -pair.similarity)
                said[least] = [(groups[str(p.id_a)] == groups[str(p.id_b)], p.band) for p in pairs]
            by_similarity = np.cumsum([same for same, _ in said[0.0]])
            best = float(
                (2 * by_similarity / (np.arange(1, len(by_similarity) + 1) + TRUE_PAIRS)).max()
            )
            print(
                f"{name}, {way}: candidates {figures([same for same, _ in said[None]])}; "
                f"likely {figures([same for same, band in said[None] if band == 'likely'])}; "
                f"similarity above 0.70 alone {figures([same for same, _ in said[0.0]])}, best F1 {best:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
