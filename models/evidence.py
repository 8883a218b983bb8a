"""What a pair's sizes, time gap and crop quality say beside its looks.

    PYTHONPATH=.:models python models/evidence.py DATA LINKER WEIGHTS...

DATA holds `reid/people_crops.tar`, LINKER is a published OSNet (weights B). No set at hand has
identities, boxes and time together, so tracks are made: crops of 45 public videos, linked from
frame to frame by LINKER as for distillation. Each of 8 crops or more is cut in two with a gap
between, its first and last 40 %; its two halves are one person, halves of two tracks that were seen
in one frame are two. For each of WEIGHTS, on the pairs above 0.70 with no veto: the log loss of the
package's probability, by its looks alone and with each further feature, by logistic regressions
fitted on all other videos (every video counts by the root of its pairs).
`streamproc/gallery/evidence.py` holds what was worth having. The gaps are a fifth of a track by the
way they are made, so of long absences nothing can be learned here.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distillation.crops import centre, link
from PIL import Image

from models.known_people import CROPS_A_TRACK, CROPS_AT_ONCE, as_crop, person_of
from streamproc.crops.quality import sharpness
from streamproc.gallery import Curve, GalleryScorer, load_curves
from streamproc.gallery.calibration.curve import STRAIGHT, bend
from streamproc.gallery.calibration.fitting import logistic, similar_pairs
from streamproc.gallery.calibration.sizes import END_CROPS, LARGEST_CHANGE
from streamproc.reid.embedder import Embedder
from streamproc.reid.export import find_weights

LEAST_CROPS, LEAST_OF_A_HALF, HALF = 8, 3, 0.4
THRESHOLD = 0.70
SLOPES = (0, 2, 4, 6, 8)
RIDGE = (1e-6, 3e-3)


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """All crops of the videos: pixels (n, 256, 128, 3); video, frame, height in pixels and sharpness, each (n,)."""

    pixels: np.ndarray
    video: np.ndarray
    frame: np.ndarray
    height_px: np.ndarray
    sharpness: np.ndarray

    @classmethod
    def load(cls, archive: Path) -> Crops:
        """Read them all."""
        rows = []
        with tarfile.open(archive) as tar:
            for member in sorted(
                (m for m in tar if m.name.endswith(".jpg")), key=lambda m: Path(m.name).name
            ):
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                video, frame, _ = Path(member.name).name.split("_")
                rows.append(
                    (
                        as_crop(image),
                        video,
                        int(frame),
                        image.height,
                        float(sharpness([np.asarray(image)])[0]),
                    )
                )
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    def embedded(self, weights: str, cache: Path) -> tuple[np.ndarray, str]:
        """Their unit vectors (n, dim), and the sha256 of the weights."""
        embedder = Embedder(find_weights(weights, cache_folder=cache))
        parts = range(0, len(self.pixels), CROPS_AT_ONCE)
        vectors = [embedder.embed(self.pixels[start : start + CROPS_AT_ONCE]) for start in parts]
        return np.concatenate(vectors), embedder.weights_sha256


def linked(crops: Crops, vectors: np.ndarray) -> list[list[np.ndarray]]:
    """The tracks of each video that has two or more: rows of `crops`, in time order."""
    centred = centre(torch.from_numpy(vectors), torch.from_numpy(vectors).mean(0)).numpy()
    videos = []
    for name in np.unique(crops.video):
        rows = np.flatnonzero(crops.video == name)
        tracks = [rows[found] for found in link(centred[rows], crops.frame[rows])]
        tracks = [
            own[np.argsort(crops.frame[own], kind="stable")]
            for own in tracks
            if len(own) >= LEAST_CROPS
        ]
        if len(tracks) > 1:
            videos.append(tracks)
    return videos


def pairs_of(
    crops: Crops, tracks: list[np.ndarray], vectors: np.ndarray, curve: Curve, sha256: str
) -> np.ndarray:
    """Rows of (one person, log-odds, and the features of FEATURES) for the similar pairs of one video's halves."""
    video = str(crops.video[tracks[0][0]])
    halves = []
    for own in tracks:
        count = max(LEAST_OF_A_HALF, int(len(own) * HALF))
        halves += [own[:count], own[-count:]]
    frames = [set(crops.frame[half]) for half in halves]
    whole = [set(crops.frame[own]) for own in tracks]
    chosen = [
        half[np.unique(np.linspace(0, len(half) - 1, CROPS_A_TRACK).round().astype(int))]
        for half in halves
    ]
    persons, number = {}, {}
    for i, rows in enumerate(chosen):
        beside = [j for j in range(len(halves)) if j // 2 != i // 2 and frames[i] & frames[j]]
        one = person_of(vectors[rows], video_id=video, person_id=i, seen_with=beside, sha256=sha256)
        persons[one.person_key], number[one.person_key] = one, i
    pairs, _ = similar_pairs(persons, THRESHOLD)
    if not pairs:
        return np.zeros((0, 2 + len(FEATURES)))
    # Boxes are unknown to `person_of`, so that what sizes say is not in these odds.
    log_odds = (
        GalleryScorer(curve, persons).features(pairs) @ np.array(curve.closed[1:]) + curve.closed[0]
    )
    step = np.median(np.diff(np.unique(crops.frame[crops.video == video])))
    rows = []
    for (a, b), chance in zip(pairs, bend(log_odds, curve.bent), strict=True):
        i, j = sorted((number[a], number[b]), key=lambda n: crops.frame[halves[n][0]])
        if i // 2 != j // 2 and not whole[i // 2] & whole[j // 2]:
            continue  # nobody knows whether these are one person
        first, second = (np.log(crops.height_px[chosen[n]]) for n in (i, j))
        sharp = [crops.sharpness[chosen[n]].mean() for n in (i, j)]
        gap = max(0, crops.frame[halves[j][0]] - crops.frame[halves[i][-1]]) / step
        ends = abs(np.median(first[-END_CROPS:]) - np.median(second[:END_CROPS]))
        sizes = (min(ends, LARGEST_CHANGE), abs(np.median(first) - np.median(second)))
        height = min(np.median(first), np.median(second))
        rows.append((i // 2 == j // 2, chance, *sizes, np.log1p(gap), height, *sharp))
    return np.array(rows, np.float64).reshape(-1, 2 + len(FEATURES))


FEATURES = (
    "size at the gap",
    "size",
    "time gap",
    "height in pixels",
    "sharpness of one",
    "of the other",
)
TRIED = {
    "looks alone": (),
    "size ratio at the gap": (0,),
    "size ratio of the tracks": (1,),
    "time gap": (2,),
    "height in pixels": (3,),
    "sharpness of both": (4, 5),
    "all": (0, 2, 3, 4, 5),
}


def log_losses(videos: list[np.ndarray], columns: tuple[int, ...]) -> np.ndarray:
    """The mean log loss on each video, by coefficients fitted on all others."""
    losses = []
    for held in range(len(videos)):
        seen = np.concatenate([rows for i, rows in enumerate(videos) if i != held])
        weights = np.concatenate(
            [np.full(len(r), len(r) ** -0.5) for i, r in enumerate(videos) if i != held]
        )
        wanted = [1, *(2 + column for column in columns)]
        intercept, *slopes = logistic(
            seen[:, wanted], seen[:, 0], weights, ridge=RIDGE, rising=0, bent=STRAIGHT
        )
        logits = videos[held][:, wanted] @ np.array(slopes) + intercept
        losses.append(float(np.mean(np.logaddexp(0, logits) - videos[held][:, 0] * logits)))
    return np.array(losses)


def losses_by_slope(rows: np.ndarray, weights: np.ndarray) -> list[tuple[float, float, float]]:
    """Slope, what the same height is worth with it, and log loss of the package's log-odds with that added.

    What the same height is worth follows: evidence must be a ratio of likelihoods, of mean 1 among
    pairs of two people.
    """
    same, log_odds, change = rows[:, 0] == 1, rows[:, 1], rows[:, 2]
    found = []
    for slope in SLOPES:
        alike = -np.log(np.average(np.exp(-slope * change[~same]), weights=weights[~same]))
        logits = log_odds + alike - slope * change
        found.append(
            (slope, alike, np.average(np.logaddexp(0, logits) - same * logits, weights=weights))
        )
    return found


def main() -> None:
    """Print what each feature is worth with each of the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("linker")
    parser.add_argument("weights", nargs="+")
    args = parser.parse_args()
    crops = Crops.load(args.data / "reid" / "people_crops.tar")
    curves = load_curves(Path(__file__).resolve().parent / "calibration.json")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        tracks = linked(crops, crops.embedded(args.linker, cache)[0])
        for name in args.weights:
            vectors, sha256 = crops.embedded(name, cache)
            found = [pairs_of(crops, own, vectors, curves[sha256], sha256) for own in tracks]
            videos = [rows for rows in found if len(rows)]
            every = np.concatenate(videos)
            same, changes = every[:, 0] == 1, every[:, 2]
            one, two = np.median(changes[same]), np.median(changes[~same])
            print(
                f"{Path(name).name}: {len(every)} pairs of {len(videos)} videos, {same.sum()} of one person; heights "
                f"at the gap change by {one:.0%} (one person) and {two:.0%} (two)"
            )
            weights = np.concatenate([np.full(len(rows), len(rows) ** -0.5) for rows in videos])
            for slope, alike, loss in losses_by_slope(every, weights):
                print(
                    f"  size at the gap by a slope of {slope}, the same height worth {alike:.2f}: log loss {loss:.4f}"
                )
            alone = None
            shares = np.array([len(rows) ** 0.5 for rows in videos])
            for what, columns in TRIED.items():
                losses = log_losses(videos, columns)
                alone = losses if alone is None else alone
                print(
                    f"  {what}: log loss {losses @ shares / shares.sum():.4f}; lower in {(losses < alone).sum()}, "
                    f"higher in {(losses > alone).sum()} videos",
                    flush=True,
                )


if __name__ == "__main__":
    main()
