"""How good the list is on real trackers' tracks, beside other ways to link, in one run.

    python tests/benchmarks/linking.py [--weights NAME]

IDF1 of the tracks when all pairs of a way are merged:

- *ours*: the product's list with all defaults;
- *cosine*: all pairs above 0.80 without a veto;
- *GTA-Link*: the linking of Sun et al. 2024, written from the paper;
- *left out*: the same list by a model that was fitted without the video that it judges;
- *split*: the same after tracks that seem to hold two people were cut, by a model fitted on all
  videos.

All see the same crops and the same vectors.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from common import SHARED, print_machine

from models.linking import gta_link
from models.linking.evaluate import suspects_of
from models.linking.galleries import tracked_pairs
from models.linking.judge import candidates
from models.linking.learned import load_linking, load_purity
from models.linking.rows import split, tracked_files
from models.linking.scores import Truth, score, together
from streamproc.gallery.linking.purity import LEAST_SUSPICION, suspicion

if TYPE_CHECKING:
    from models.linking.rows import Listed, TrackedFile
    from models.linking.scores import Score

COSINE = 0.80
WAYS = ("tracks", "ours", "cosine", "GTA-Link", "left out", "split", "truth")
MARGIN = 5e-4  # of IDF1, as printed


def cosine_pairs(file: TrackedFile) -> list[tuple[int, int]]:
    """All pairs of ids above the threshold without a veto."""
    vectors = file.vectors()
    similar = np.triu(vectors @ vectors.T > COSINE, 1)
    similar[file.vetoes[:, 0], file.vetoes[:, 1]] = False
    return file.ids[np.argwhere(similar)].tolist()


def gta_pairs(file: TrackedFile) -> list[tuple[int, int]]:
    """Each tracklet with the one that GTA-Link's label names."""
    own = [file.fitted[int(person)] for person in file.ids]
    first, last = (np.stack([track.boxes_xyxy[i] for track in own]) for i in (0, -1))
    label = gta_link.link(file.crop_vectors, [each.frame_indices for each in own], first, last)
    return np.stack([file.ids, file.ids[label]], axis=1).tolist()


def left_out(file: TrackedFile) -> Listed:
    """The candidates of a model that was fitted without this video."""
    model = load_linking(without=file.video)
    return candidates(file, tracked_pairs(file, Truth(file), model.looks), model)


def cut(file: TrackedFile) -> TrackedFile:
    """The file with the tracks cut that seem to hold two people."""
    suspects = suspects_of(file, load_linking().looks)
    chances = suspicion(list(suspects.values()), load_purity())
    named = zip(suspects.items(), chances, strict=True)
    frames = {who: one.frame_index for (who, one), chance in named if chance >= LEAST_SUSPICION}
    return split(file, frames)


def measure(file: TrackedFile) -> tuple[list[float], Score, Score]:
    """IDF1 by `WAYS`, and the scores of the product's list and of that of a left-out model."""
    whole = Truth(file)
    parts = cut(file)
    ours = score(file, whole, file.listed, whole)
    unseen = score(file, whole, left_out(file), whole)
    after_cut = score(parts, Truth(parts), left_out(parts), whole)
    start, _, by_ours, best = ours.idf1
    others = [whole.idf1(cosine_pairs(file)), whole.idf1(gta_pairs(file))]
    return [start, by_ours, *others, unseen.idf1[2], after_cut.idf1[2], best], ours, unseen


def main() -> None:
    """Print a line for each file, and what is below GTA-Link."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", default="osnet_x0_25_ours", help="those of the package alone")
    args = parser.parse_args()
    if not (SHARED / "data" / "trackers").is_dir():
        sys.exit("needs the research data in ../shared")
    print_machine()
    print("IDF1 merged by all:", ", ".join(WAYS))
    rows = []
    ours = []
    unseen = []
    for file in tracked_files(SHARED / "data", args.weights, None):
        values, *scores = measure(file)
        rows.append(values)
        ours.append(scores[0])
        unseen.append(scores[1])
        print(f"{scores[0].name}: " + ", ".join(f"{value:.3f}" for value in values), flush=True)
    table = np.array(rows)
    gta = table[:, WAYS.index("GTA-Link")]
    for name, column in zip(WAYS, table.T, strict=True):
        below = int((column < gta - MARGIN).sum())
        print(f"{name}: median {np.median(column):.3f}, below GTA-Link in {below} of {len(gta)}")
    print(f"list ours: {together(ours)}\nlist left out: {together(unseen)}")


if __name__ == "__main__":
    main()
