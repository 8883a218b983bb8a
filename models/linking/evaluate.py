r"""Fit the prepared model of pairs anew, and print how good it is.

    PYTHONPATH=. python models/linking/evaluate.py DATA WEIGHTS... [--cache FOLDER] [--write FOLDER]

WEIGHTS are files or names of the manifest; `osnet_x0_25_ours` is the package's own. DATA holds
`trackers`, `videos`, `gt`, `persons`, `reid/market1501_train.tar`, `reid/market1501_test100` and
`MOT17-mini`. `--cache` keeps what the network said, in a folder for each set of weights: remove it
when crops are chosen otherwise. `--write` writes what was fitted, as in `models/linking/learned`.

*Left out*: all trackers of a video judged by a model fitted on the other videos. *In sample*:
fitted on all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.calibrate import known_galleries, learned
from models.known_people import embed_all, train_pictures
from models.linking.fit_linking import fit_looks, fit_moving, fit_purity, joined
from models.linking.galleries import draw_galleries, gallery_pairs, tracked_pairs
from models.linking.judge import candidates, final_odds, judge_groups
from models.linking.rows import VIDEOS, split, tracked_files
from models.linking.scores import Truth, score, switches, together
from streamproc.gallery.calibration.reliability import calibration_error
from streamproc.gallery.linking.pair_model import sigmoid
from streamproc.gallery.linking.purity import LEAST_SUSPICION, find_suspect, suspicion
from streamproc.reid.embedder import Embedder
from streamproc.reid.export import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.known_people import Tracks
    from models.linking.fit_linking import KnownPairs
    from models.linking.rows import TrackedFile
    from streamproc.gallery.linking.pair_features import LooksModel
    from streamproc.gallery.linking.pair_model import PairModel
    from streamproc.gallery.linking.purity import Suspect

STILL_LEAST = 0.2
"""The least probability of still pictures; `candidates` has those of videos."""
DIGITS = 4


def known_tracks(data: Path, embedder: Embedder, cache: Path) -> Tracks:
    """Return Market's training identities, embedded now or as the cache has them."""
    path = cache / "market.npz"
    if not path.is_file():
        tracks = embed_all(embedder, train_pictures(data))
        np.savez(
            path, allow_pickle=False, **{"|".join(key): vectors for key, vectors in tracks.items()}
        )
    with np.load(path) as arrays:
        return {tuple(name.split("|")): arrays[name] for name in arrays}


def models_by_video(
    known: Sequence[KnownPairs], looks: LooksModel
) -> Mapping[str, Mapping[str, PairModel]]:
    """Return the model that judges each video, left out and in sample."""
    everything = fit_moving(known, looks)
    left_out = {
        video: fit_moving([each for each in known if each.source != video], looks)
        for video in VIDEOS
    }
    return {"left out": left_out, "in sample": dict.fromkeys(VIDEOS, everything)}


def print_lists(
    title: str,
    files: Sequence[TrackedFile],
    wholes: Sequence[Truth],
    models: Mapping[str, PairModel],
) -> None:
    """Print how good the lists of all files are, and the probabilities of groups."""
    scores = []
    groups = []
    for file, whole in zip(files, wholes, strict=True):
        truth = Truth(file)
        model = models[file.video]
        known = tracked_pairs(file, truth, model.looks)
        listed = candidates(file, known, model)
        scores.append(score(file, truth, listed, whole))
        groups += judge_groups(known, model)
        print(f"  {scores[-1]}")
    said, right = np.array(groups).T
    print(f"{title}: {together(scores)}")
    print(
        f"  groups: said {said.mean():.3f}, right {right.mean():.3f}, "
        f"ECE {calibration_error(said, right > 0):.3f} of {len(said)}",
        flush=True,
    )


def suspects_of(file: TrackedFile, looks: LooksModel) -> Mapping[int, Suspect]:
    """Return where tracks would be cut, by id."""
    found = {}
    for person, vectors, frames in zip(file.ids, file.crop_vectors, file.crop_frames, strict=True):
        track = file.fitted[int(person)]
        suspect = find_suspect(
            vectors, frames, looks.mean, track.frame_indices, track.boxes_xyxy.astype(np.float64)
        )
        if suspect is not None:
            found[int(person)] = suspect
    return found


def split_left_out(files: Sequence[TrackedFile], looks: LooksModel) -> list[TrackedFile]:
    """Split the tracks of each video that models fitted on the other videos suspect."""
    suspects = [suspects_of(file, looks) for file in files]
    real = [switches(file.tracks, file.truth) for file in files]
    parts = []
    reported = np.zeros(3, int)
    for file, own, true in zip(files, suspects, real, strict=True):
        others = [i for i, other in enumerate(files) if other.video != file.video]
        impure = [person in real[i] for i in others for person in suspects[i]]
        model = fit_purity([one for i in others for one in suspects[i].values()], np.array(impure))
        chances = suspicion(list(own.values()), model)
        cuts = {
            person: suspect.frame_index
            for (person, suspect), chance in zip(own.items(), chances, strict=True)
            if chance >= LEAST_SUSPICION
        }
        right = sum(
            person in true and abs(true[person] - frame) <= file.frames_per_second
            for person, frame in cuts.items()
        )
        reported += (right, len(cuts), len(true))
        parts.append(split(file, cuts))
    print(f"impure tracks, left out: {reported[0]} right of {reported[1]}, {reported[2]} truly are")
    return parts


def print_still(data: Path, embedder: Embedder, weights: str, model: PairModel) -> None:
    """Print the figures of galleries of still pictures, which are never fitted on."""
    judged: list[tuple[np.ndarray, np.ndarray]] = []
    for name, galleries in known_galleries(data, embedder, weights).items():
        known = [gallery_pairs(gallery, model.looks, name) for gallery in galleries]
        odds = np.concatenate([final_odds(each, model) for each in known])
        judged.append((np.round(sigmoid(odds), 2), np.concatenate([each.same for each in known])))
        _print_published(name, *judged[-1])
    _, drawn, pets, _ = judged
    both = [np.concatenate(parts) for parts in zip(drawn, pets, strict=True)]
    _print_published("Market test100 in many galleries, and PETS", *both)


def _print_published(name: str, chances: np.ndarray, same: np.ndarray) -> None:
    shown = chances >= STILL_LEAST
    found = same[shown].sum()
    print(
        f"{name}: {len(same)} pairs; at {STILL_LEAST} and more: recall {found / same.sum():.3f} "
        f"precision {found / shown.sum():.3f} "
        f"ECE {calibration_error(chances[shown], same[shown]):.3f}",
        flush=True,
    )


def evaluate(data: Path, weights: str, cache: Path) -> dict[str, object]:
    """Fit on one set of weights, print all tables, and return what is learned, as JSON."""
    with tempfile.TemporaryDirectory() as exported:
        embedder = Embedder(find_weights(weights, cache_folder=Path(exported)))
    sha256 = embedder.weights_sha256
    kept = cache / sha256[:8]
    kept.mkdir(parents=True, exist_ok=True)
    tracks = known_tracks(data, embedder, kept)
    looks = learned(tracks, {who for who, _, _ in tracks}).looks()
    files = list(tracked_files(data, weights, kept))
    truths = [Truth(file) for file in files]
    today = [score(*both, both[0].listed, both[1]) for both in zip(files, truths, strict=True)]
    print(f"== {embedder.name} {sha256[:8]}\nthe product today: {together(today)}", flush=True)
    known = [tracked_pairs(*both, looks) for both in zip(files, truths, strict=True)]
    models = models_by_video(known, looks)
    parts = split_left_out(files, looks)
    for way, chosen in models.items():
        print_lists(f"tracks whole, {way}", files, truths, chosen)
        print_lists(f"tracks split, {way}", parts, truths, chosen)
    still = fit_looks(draw_galleries(tracks, sha256, np.random.default_rng(11)), looks)
    print_still(data, embedder, weights, still)
    fitted = {"all": models["in sample"]["Venice-2"]} | {
        f"without {video}": model for video, model in models["left out"].items()
    }
    both = {name: joined(model, still).to_json() for name, model in fitted.items()}
    return {"sha256": sha256, **both}


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def main() -> None:
    """Print the tables of each set of weights, and write what was learned where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--cache", type=Path, help="keeps vectors of crops from run to run")
    parser.add_argument("--write", type=Path, help="a folder for what was fitted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for weights in args.weights:
            found = evaluate(args.data, weights, args.cache or Path(folder))
            if args.write is not None:
                args.write.mkdir(parents=True, exist_ok=True)
                target = args.write / f"linking.{Path(weights).stem}.json"
                target.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
