"""Print metrics of re-identification weights.

    PYTHONPATH=. python models/evaluate.py DATA WEIGHTS...

WEIGHTS are .onnx, .pth, .pt or .safetensors files. DATA holds `reid/market1501_test100`, `videos`
and `gt`. A track is up to 8 crops of one person in one camera or video track, and is represented by
the unit mean of their unit features. All tracks of a set are compared with each other.

Market-1501: AUC, rank-1, and the share of positive pairs above the similarity that 1 % of the
negative pairs exceed. PETS09-S2L1: the best F1 over all thresholds of finding the tracks of one
person, where pairs that share a frame are vetoed; with vectors as they are, and centred (the mean
vector of the tracks subtracted first). TUD-Campus, where no person has two tracks: the same for
halves of tracks.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from streamproc.reid.embedder import Embedder, person_vector, unit
from streamproc.reid.export import find_weights

CROPS_A_TRACK = 8
WIDTH, HEIGHT = 128, 256


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs of tracks that may be of one person."""

    similarity: np.ndarray  # (n,)
    same: np.ndarray  # (n,): whether they are of one person

    def auc(self) -> float:
        """Return the probability that a positive pair is more similar than a negative one."""
        wrong = np.sort(self.similarity[~self.same])
        return float(np.searchsorted(wrong, self.similarity[self.same]).mean() / len(wrong))

    def recall_at(self, false_share: float) -> tuple[float, float]:
        """Return the share of positives above a similarity, and that similarity.

        It is the one that `false_share` of the negatives exceed.
        """
        threshold = float(np.quantile(self.similarity[~self.same], 1 - false_share))
        return float((self.similarity[self.same] > threshold).mean()), threshold

    def best_f1(self) -> tuple[float, float]:
        """Return the best F1 over all thresholds, and the lowest similarity that then counts."""
        order = np.argsort(-self.similarity)
        hits = self.same[order].cumsum()
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + self.same.sum())
        best = int(f1.argmax())
        return float(f1[best]), float(self.similarity[order][best])

    def margin(self) -> tuple[float, float]:
        """Return the lowest similarity of a positive pair, and the highest of a negative one."""
        return float(self.similarity[self.same].min()), float(self.similarity[~self.same].max())


def pairs(vectors: np.ndarray, people: np.ndarray, allowed: np.ndarray | None = None) -> Pairs:
    """Compare unit `vectors` (n, dim) with each other, all pairs or those `allowed` (n, n)."""
    upper = np.triu(np.ones((len(vectors), len(vectors)), dtype=bool), 1)
    if allowed is not None:
        upper &= allowed
    return Pairs((vectors @ vectors.T)[upper], (people[:, None] == people)[upper])


def embed_tracks(embedder: Embedder, tracks: list[list[np.ndarray]]) -> np.ndarray:
    """Return a vector for each track of crops: (n, dim)."""
    return np.stack([person_vector(embedder.embed(np.stack(crops))) for crops in tracks])


def as_crop(image: Image.Image) -> np.ndarray:
    """Scale to the network's input, uint8 (256, 128, 3)."""
    return np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def market(data: Path, embedder: Embedder) -> str:
    """Measure on Market-1501's 100 test identities, in two cameras each."""
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted((data / "reid" / "market1501_test100").glob("*.jpg")):
        identity, camera = path.name.split("_")[:2]
        files[identity, camera[:2]].append(path)
    people = np.array([identity for identity, _ in files])
    vectors = embed_tracks(embedder, [_open_crops(paths) for paths in files.values()])
    nearest = (vectors @ vectors.T - 2 * np.eye(len(vectors))).argmax(1)
    found = pairs(vectors, people)
    recall, threshold = found.recall_at(0.01)
    rank_1 = (people[nearest] == people).mean()
    return (
        f"Market AUC {found.auc():.4f} rank-1 {rank_1:.3f} "
        f"TPR@FPR1% {recall:.2f} (at {threshold:.3f})"
    )


def _open_crops(paths: list[Path]) -> list[np.ndarray]:
    return [as_crop(Image.open(path)) for path in paths[:CROPS_A_TRACK]]


def read_tracks(data: Path, video: str, truth: str) -> dict[int, tuple[set[int], list[np.ndarray]]]:
    """Return the frames of each track of `gt/TRUTH.gt.txt`, and 8 crops evenly spread."""
    import av

    rows = np.loadtxt(data / "gt" / f"{truth}.gt.txt", delimiter=",")
    wanted: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    tracks: dict[int, tuple[set[int], list[np.ndarray]]] = {}
    for track in np.unique(rows[:, 1]).astype(int):
        own = rows[rows[:, 1] == track]
        own = own[own[:, 0].argsort()]
        tracks[int(track)] = (set(own[:, 0].astype(int).tolist()), [])
        for row in own[np.linspace(0, len(own) - 1, CROPS_A_TRACK).astype(int)]:
            wanted[int(row[0])].append((int(track), row[2:6].astype(int).tolist()))
    with av.open(data / "videos" / video) as container:
        for number, frame in enumerate(container.decode(video=0), 1):
            for track, (left, top, width, height) in wanted.get(number, ()):
                right = min(left + width, frame.width)
                bottom = min(top + height, frame.height)
                box = (max(left, 0), max(top, 0), right, bottom)
                tracks[track][1].append(as_crop(frame.to_image().crop(box)))
    return tracks


def pets(data: Path, embedder: Embedder) -> str:
    """Measure on PETS09-S2L1: 19 tracks of 10 people, 12 pairs of one person."""
    tracks = read_tracks(data, "vtest.avi", "PETS09-S2L1")
    truth = json.loads((data / "gt" / "PETS09-S2L1.identity.json").read_text())["track_to_person"]
    people = np.array([truth[str(track)] for track in tracks])
    frames = [seen for seen, _ in tracks.values()]
    apart = np.array([_apart(one, frames) for one in frames])
    raw = embed_tracks(embedder, [crops for _, crops in tracks.values()])
    lines = []
    for name, vectors in (("raw", raw), ("centred", unit(raw - raw.mean(0)))):
        vetoed = pairs(vectors, people, apart)
        everything = pairs(vectors, people)
        f1, threshold = vetoed.best_f1()
        lowest_true, highest_wrong = everything.margin()
        lines.append(
            f"PETS {name} F1 {f1:.3f} at {threshold:.3f} "
            f"without veto {everything.best_f1()[0]:.3f}, "
            f"lowest true {lowest_true:.3f} highest wrong {highest_wrong:.3f} "
            f"(vetoed {vetoed.margin()[1]:.3f})"
        )
    return "\n".join(lines)


def _apart(one: set[int], others: list[set[int]]) -> list[bool]:
    return [not (one & other) for other in others]


def campus(data: Path, embedder: Embedder) -> str:
    """Measure on TUD-Campus: first halves of tracks against second halves of all tracks."""
    tracks = read_tracks(data, "TUD-Campus.mp4", "TUD-Campus")
    middle = CROPS_A_TRACK // 2
    halves = []
    for _, crops in tracks.values():
        halves += [crops[:middle], crops[middle:]]
    raw = embed_tracks(embedder, halves)
    people = np.repeat(list(tracks), 2)
    found = pairs(raw, people)
    centred = pairs(unit(raw - raw.mean(0)), people)
    lowest_true, highest_wrong = centred.margin()
    return (
        f"TUD-Campus halves AUC {found.auc():.3f} F1 {found.best_f1()[0]:.3f}, "
        f"centred AUC {centred.auc():.3f} F1 {centred.best_f1()[0]:.3f} "
        f"lowest true {lowest_true:.3f} highest wrong {highest_wrong:.3f}"
    )


def main() -> None:
    """Print the metrics of each weights file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+")
    args = parser.parse_args()
    for name in args.weights:
        with tempfile.TemporaryDirectory() as cache:
            weights = find_weights(name, cache_folder=Path(cache))
            embedder = Embedder(weights, threads=os.cpu_count() or 1)
        print(f"== {name}")
        for measure in (market, pets, campus):
            print(measure(args.data, embedder), flush=True)


if __name__ == "__main__":
    main()
