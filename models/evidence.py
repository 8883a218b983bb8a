"""What sizes, time gap and crop quality of a pair add to how similar its tracklets look.

    PYTHONPATH=.:models python models/evidence.py DATA LINKER WEIGHTS...

DATA holds `reid/people_crops.tar`, LINKER is a published OSNet (weights B). No data set at hand has
identities, boxes and time together, so tracks are made: crops of 45 public videos are linked from
frame to frame by LINKER, as for distillation. Each track of 8 crops or more is cut in two, its
first and last 40 %, with a gap between. Its two halves are one person, halves of two tracks that
were seen in one frame are two. For each of WEIGHTS, on the pairs above 0.70 with no veto, the
script prints the log loss of the package's probability by looks alone, and with each further
feature, by logistic regressions fitted on all other videos. Every video counts by the square root
of its number of pairs.

The product uses what helped: see `streamproc/gallery/calibration/sizes.py`. The gaps are a fifth of
a track by construction, so nothing can be learned here of long absences.
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

from models.known_people import CROPS_AT_ONCE, as_crop, evenly_spread, person_of
from streamproc.crops.quality import sharpness
from streamproc.gallery import Curve, GalleryScorer, load_curves
from streamproc.gallery.calibration.curve import beta_calibrate
from streamproc.gallery.calibration.fitting import logistic, similar_pairs
from streamproc.gallery.calibration.sizes import END_CROPS, LARGEST_CHANGE
from streamproc.reid.embedder import Embedder
from streamproc.reid.export import find_weights

LEAST_CROPS = 8
LEAST_OF_A_HALF = 3
HALF = 0.4
"""The share of a track that each of its halves has; the rest is the gap."""
THRESHOLD = 0.70
SLOPES = (0, 2, 4, 6, 8)
RIDGE = (1e-6, 3e-3)


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """All crops of the videos: pixels uint8 (n, 256, 128, 3), and the others (n,)."""

    pixels: np.ndarray
    video: np.ndarray
    frame: np.ndarray
    height_px: np.ndarray
    sharpness: np.ndarray

    @classmethod
    def load(cls, archive: Path) -> Crops:
        """Read all of them."""
        rows = []
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name.endswith(".jpg")]
            for member in sorted(members, key=lambda member: Path(member.name).name):
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                video, frame, _ = Path(member.name).name.split("_")
                sharp = float(sharpness([np.asarray(image)])[0])
                rows.append((as_crop(image), video, int(frame), image.height, sharp))
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    def embedded(self, weights: str, cache: Path) -> tuple[np.ndarray, str]:
        """Return their unit vectors (n, dim), and the sha256 of the weights."""
        embedder = Embedder(find_weights(weights, cache_folder=cache))
        starts = range(0, len(self.pixels), CROPS_AT_ONCE)
        vectors = [embedder.embed(self.pixels[start : start + CROPS_AT_ONCE]) for start in starts]
        return np.concatenate(vectors), embedder.weights_sha256


def linked(crops: Crops, vectors: np.ndarray) -> list[list[np.ndarray]]:
    """Return the tracks of each video that has several, as rows of `crops` in time order."""
    centred = centre(torch.from_numpy(vectors), torch.from_numpy(vectors).mean(0)).numpy()
    videos = []
    for name in np.unique(crops.video):
        rows = np.flatnonzero(crops.video == name)
        tracks = []
        for found in link(centred[rows], crops.frame[rows]):
            own = rows[found]
            if len(own) >= LEAST_CROPS:
                tracks.append(own[np.argsort(crops.frame[own], kind="stable")])
        if len(tracks) > 1:
            videos.append(tracks)
    return videos


def halves_of(tracks: list[np.ndarray]) -> list[np.ndarray]:
    """Return both halves of each track: those of track i are at 2 i and 2 i + 1."""
    halves = []
    for own in tracks:
        count = max(LEAST_OF_A_HALF, int(len(own) * HALF))
        halves += [own[:count], own[-count:]]
    return halves


def pairs_of(
    crops: Crops, tracks: list[np.ndarray], vectors: np.ndarray, curve: Curve, sha256: str
) -> np.ndarray:
    """Return a row for each similar pair of one video's halves whose truth is known.

    Its columns are: 1 for one person, the log-odds, and FEATURES.
    """
    video = str(crops.video[tracks[0][0]])
    halves = halves_of(tracks)
    frames = [set(crops.frame[half]) for half in halves]
    frames_of_track = [set(crops.frame[own]) for own in tracks]
    chosen = [half[evenly_spread(len(half))] for half in halves]
    tracklets = {}
    number = {}
    for i, rows in enumerate(chosen):
        beside = [j for j in range(len(halves)) if j // 2 != i // 2 and frames[i] & frames[j]]
        one = person_of(vectors[rows], video_id=video, person_id=i, seen_with=beside, sha256=sha256)
        tracklets[one.person_key] = one
        number[one.person_key] = i
    pairs, _ = similar_pairs(tracklets, THRESHOLD)
    if not pairs:
        return np.zeros((0, 2 + len(FEATURES)))
    # `person_of` knows no boxes, so sizes are not in these log-odds.
    features = GalleryScorer(curve, tracklets).features(pairs)
    intercept, *weights = curve.closing_coefficients
    log_odds = beta_calibrate(features @ np.array(weights) + intercept, curve.beta_coefficients)
    frame_step = np.median(np.diff(np.unique(crops.frame[crops.video == video])))
    found = []
    for (a, b), log_odds_of_pair in zip(pairs, log_odds, strict=True):
        i, j = sorted((number[a], number[b]), key=lambda n: crops.frame[halves[n][0]])
        one_person = i // 2 == j // 2
        if not one_person and not frames_of_track[i // 2] & frames_of_track[j // 2]:
            continue  # nobody knows whether these are one person
        gap = max(0, crops.frame[halves[j][0]] - crops.frame[halves[i][-1]]) / frame_step
        features_of_pair = _features(crops, chosen[i], chosen[j], gap)
        found.append((one_person, log_odds_of_pair, *features_of_pair))
    return np.array(found, np.float64).reshape(-1, 2 + len(FEATURES))


def _features(crops: Crops, earlier: np.ndarray, later: np.ndarray, gap: float) -> list[float]:
    """Return FEATURES of two halves, given as rows of `crops`; `gap` is in sampled frames."""
    first = np.log(crops.height_px[earlier])
    second = np.log(crops.height_px[later])
    at_gap = abs(np.median(first[-END_CROPS:]) - np.median(second[:END_CROPS]))
    return [
        min(at_gap, LARGEST_CHANGE),
        abs(np.median(first) - np.median(second)),
        np.log1p(gap),
        min(np.median(first), np.median(second)),
        crops.sharpness[earlier].mean(),
        crops.sharpness[later].mean(),
    ]


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
"""By name, the positions in FEATURES of those that are added to the log-odds."""


def weights_of(videos: list[np.ndarray]) -> np.ndarray:
    """Return the weights of the pairs of all videos: a video's sum is the root of its count."""
    return np.concatenate([np.full(len(rows), len(rows) ** -0.5) for rows in videos])


def log_losses(videos: list[np.ndarray], columns: tuple[int, ...]) -> np.ndarray:
    """Return the mean log loss on each video, by coefficients fitted on all others."""
    wanted = [1, *(2 + column for column in columns)]
    losses = []
    for held_out, rows in enumerate(videos):
        others = [own for i, own in enumerate(videos) if i != held_out]
        seen = np.concatenate(others)
        intercept, *slopes = logistic(
            seen[:, wanted], seen[:, 0], weights_of(others), ridge=RIDGE, nonnegative=0
        )
        log_odds = rows[:, wanted] @ np.array(slopes) + intercept
        losses.append(float(np.mean(np.logaddexp(0, log_odds) - rows[:, 0] * log_odds)))
    return np.array(losses)


def losses_by_slope(rows: np.ndarray, weights: np.ndarray) -> list[tuple[float, float, float]]:
    """Return for each of SLOPES: the slope, the log-odds of an equal height, and the log loss.

    The log-odds of an equal height follow from the slope: added log-odds must be the log of a ratio
    of likelihoods, whose mean among pairs of two people is 1.
    """
    same = rows[:, 0] == 1
    log_odds = rows[:, 1]
    change = rows[:, 2]
    found = []
    for slope in SLOPES:
        ratio = np.average(np.exp(-slope * change[~same]), weights=weights[~same])
        equal_height = -np.log(ratio)
        with_sizes = log_odds + equal_height - slope * change
        losses = np.logaddexp(0, with_sizes) - same * with_sizes
        found.append((slope, equal_height, np.average(losses, weights=weights)))
    return found


def report(name: str, videos: list[np.ndarray]) -> None:
    """Print what each feature is worth with one set of weights."""
    every = np.concatenate(videos)
    same = every[:, 0] == 1
    one, two = np.median(every[same, 2]), np.median(every[~same, 2])
    print(
        f"{name}: {len(every)} pairs of {len(videos)} videos, {same.sum()} of one person; "
        f"heights at the gap change by {one:.0%} (one person) and {two:.0%} (two)"
    )
    for slope, equal_height, loss in losses_by_slope(every, weights_of(videos)):
        print(
            f"  size at the gap by a slope of {slope}, "
            f"the same height worth {equal_height:.2f}: log loss {loss:.4f}"
        )
    by_looks = log_losses(videos, TRIED["looks alone"])
    shares = np.array([len(rows) ** 0.5 for rows in videos])
    for tried, columns in TRIED.items():
        losses = log_losses(videos, columns)
        print(
            f"  {tried}: log loss {losses @ shares / shares.sum():.4f}; "
            f"lower in {(losses < by_looks).sum()}, higher in {(losses > by_looks).sum()} videos",
            flush=True,
        )


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
            report(Path(name).name, [rows for rows in found if len(rows)])


if __name__ == "__main__":
    main()
