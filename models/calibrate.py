"""Fit the calibration curve of re-identification weights.

    PYTHONPATH=. python models/calibrate.py DATA WEIGHTS...
    PYTHONPATH=. python models/calibrate.py --leave-out VIDEO --out FILE

WEIGHTS are files or names of the manifest; `osnet_x0_25_ours` is the package's own. Each gets its
entry, by sha256, in `models/calibration.json`, which the package carries; entries made by an older
method are dropped. DATA holds `reid/market1501_train.tar`, which is fitted on, and
`reid/market1501_test100`, `MOT17-mini`, `videos`, `gt` and `persons`, which are never fitted on:
the metrics that are printed and the diagram (`--diagram`) are computed on these.

Two things are fitted; `streamproc/gallery/calibration/scorer.py` describes their use. The mean, and
the covariance within persons over all their tracks, are those of the training identities. The
logistic regressions are fitted on galleries drawn at random from these identities, as one camera or
several see people: with 1 to 5 tracks a person, with vetoes or without, and with some tracks
shortened. The identities are split in three: those of a gallery have no part in the mean and
covariance that it is judged with, as in use.

What judges the pairs of closed videos is fitted elsewhere, by `models/linking/evaluate.py`. Its
coefficients are in `models/linking/learned`, and are copied into each curve, and so is what tells
tracks that hold two people, where the weights have it. With `--leave-out` nothing is fitted: the
curves as they are get the coefficients that were fitted without a video, one of Venice-2,
PETS09-S2L1 and TUD-Campus (what tells tracks that hold two people stays as it is). FILE is for
`STREAMPROC_CLUSTERING__CALIBRATION`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.known_people import (
    KINDS,
    Pictures,
    Tracks,
    draw,
    embed_all,
    gallery_of,
    mot_pictures,
    segment_means,
    test_pictures,
    train_pictures,
)
from models.linking.learned import all_coefficients, all_purity
from streamproc.events import PersonEmbedding, VideoClosed
from streamproc.gallery import Curve, Gallery, GalleryScorer, apply, load_curves
from streamproc.gallery.calibration.curve import (
    FEATURES,
    METHOD,
    NO_BETA,
    PAIR_FEATURES,
    SIZE_COEFFICIENT,
    curves_to_json,
)
from streamproc.gallery.calibration.fitting import (
    COSINE_FEATURES,
    KnownGallery,
    fit_beta,
    logistic,
    with_coefficients,
)
from streamproc.gallery.calibration.reliability import (
    Panel,
    calibration_error,
    diagram,
    error_if_perfect,
    swept_error,
)
from streamproc.gallery.calibration.scorer import Calibration, with_gallery_features
from streamproc.reid.embedder import Embedder, person_vector
from streamproc.reid.export import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CURVES = Path(__file__).resolve().parent / "calibration.json"
DIRECTIONS = 128
"""Directions of the covariance within persons: 128 are as good as all 512, 64 are not."""
THRESHOLD = 0.70
"""Less similar pairs are no candidates by default. They are not fitted on, as many of them differ
plainly and would shape the curve where it matters, and they are in no metrics."""
GALLERIES = 360
"""Galleries of each kind; with 120 the curve still depends on which ones were drawn."""
METRICS_GALLERIES = 40
"""Galleries of each kind for metrics, drawn from the test identities, as one is too small."""
SHORTENED = 0.5
"""The share of tracks that are shortened in every other gallery, so that the weight of few crops is
learned from many tracks."""
FOLDS = 3
DRAWN = "Market test100 in many galleries"


# Fitting.


def learned(tracks: Tracks, identities: set[str]) -> Curve:
    """Return a curve with the mean and covariances of some identities, and no coefficients."""
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for (who, _, _), vectors in tracks.items():
        if who in identities:
            by_person[who].append(vectors)
    means = [
        np.stack([person_vector(vectors) for vectors in own]).astype(np.float64)
        for own in by_person.values()
    ]
    values, directions = np.linalg.eigh(_covariance(means))  # ascending
    values = values / values.sum()
    return Curve(
        mean=np.concatenate(means).mean(0).astype(np.float32),
        basis=directions[:, -DIRECTIONS:].T.astype(np.float32),
        basis_variances=values[-DIRECTIONS:].astype(np.float32),
        rest_variance=float(values[:-DIRECTIONS].mean()),
        within_track_trace=_within_track_trace(by_person),
        arrival_coefficients=(0.0, 0.0),
        pair_coefficients=(0.0,) * (1 + PAIR_FEATURES),
        closing_coefficients=(0.0,) * (1 + FEATURES),
        beta_coefficients=NO_BETA,
    )


def _covariance(means: Sequence[np.ndarray]) -> np.ndarray:
    """Return the covariance within persons (dim, dim) of the means (t, dim) of their tracks."""
    several = [own - own.mean(0) for own in means if len(own) > 1]
    degrees = sum(len(own) - 1 for own in several)
    residuals = np.concatenate(several)
    return residuals.T @ residuals / degrees


def _within_track_trace(by_person: Mapping[str, Sequence[np.ndarray]]) -> float:
    """Return the trace of the covariance of the parts of tracks around the tracks' means."""
    squares = []
    degrees = 0
    for own in by_person.values():
        for vectors in own:
            if len(vectors) > 1:
                parts = segment_means(vectors)[0].astype(np.float64)
                squares.append(float(((parts - parts.mean(0)) ** 2).sum()))
                degrees += len(parts) - 1
    return sum(squares) / degrees


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The similar pairs of a gallery of some kind.

    `similarity` (p,), `pair_features` (p, 6), `positions` (p, 2) of their tracklets, and `same`
    (p,), 1 for one person. `is_whole`: no track was shortened.
    """

    kind: str
    is_whole: bool
    tracklet_count: int
    similarity: np.ndarray
    pair_features: np.ndarray
    positions: np.ndarray
    same: np.ndarray


def draw_all(tracks: Tracks, sha256: str, rng: np.random.Generator) -> list[Drawn]:
    """Draw galleries, each judged with mean and covariances of other identities."""
    people = sorted({who for who, _, _ in tracks})
    drawn: list[Drawn] = []
    for fold in range(FOLDS):
        held_out = set(people[fold::FOLDS])
        unseen = learned(tracks, set(people) - held_out)
        for i in range(GALLERIES // FOLDS):
            shortened = SHORTENED if i % 2 else 0.0
            for kind in KINDS:
                gallery = draw(tracks, held_out, rng, sha256, kind=kind, shortened=shortened)
                pairs, similarity, same = gallery.similar_pairs(THRESHOLD)
                if not pairs:
                    continue
                scorer = GalleryScorer(unseen, gallery.tracklets)
                drawn.append(
                    Drawn(
                        kind,
                        not shortened,
                        len(gallery.tracklets),
                        similarity,
                        scorer.pair_features(pairs),
                        scorer.positions(pairs),
                        same.astype(float),
                    )
                )
    return drawn


def fit(tracks: Tracks, sha256: str, rng: np.random.Generator) -> Curve:
    """Fit the curve of some weights on tracks embedded with them."""
    drawn = draw_all(tracks, sha256, rng)
    weights = _weights(drawn)
    same = np.concatenate([one.same for one in drawn])
    # The other features are computed with the pair coefficients, so these are fitted first.
    pair_features = np.concatenate([one.pair_features for one in drawn])
    pair = tuple(logistic(pair_features, same, weights, nonnegative=COSINE_FEATURES))
    features = np.concatenate(
        [
            with_gallery_features(one.pair_features, one.positions, pair, one.tracklet_count)
            for one in drawn
        ]
    )
    # The similarity alone knows nothing of the number of crops, so only whole tracks, with the
    # usual numbers, are fitted on.
    whole = np.concatenate([np.full(len(one.same), one.is_whole) for one in drawn])
    similarity = np.concatenate([one.similarity for one in drawn])
    arrival = logistic(similarity[whole, None], same[whole], weights[whole])
    closing = logistic(features, same, weights, nonnegative=COSINE_FEATURES)
    beta = fit_beta(features @ np.array(closing[1:]) + closing[0], same, weights)
    everybody = {who for who, _, _ in tracks}
    curve = replace(learned(tracks, everybody), pair_coefficients=pair, beta_coefficients=beta)
    # All pictures of Market have the same size, so the weight of sizes cannot be fitted.
    return with_coefficients(curve, arrival, (*closing, SIZE_COEFFICIENT))


def _weights(drawn: Sequence[Drawn]) -> np.ndarray:
    """Return the weights of all pairs (p,).

    Each kind of gallery has its share of the total, and each pair of a kind counts the same.
    """
    count: dict[str, int] = defaultdict(int)
    for one in drawn:
        count[one.kind] += len(one.same)
    weights = [np.full(len(one.same), KINDS[one.kind].share / count[one.kind]) for one in drawn]
    return np.concatenate(weights)


# Metrics, on what was not fitted on.


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Pairs above the threshold with no veto: similarity, both probabilities, truth; (p,) each."""

    similarity: np.ndarray
    at_arrival: np.ndarray
    at_close: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, galleries: Sequence[KnownGallery], curve: Curve, sha256: str) -> Judged:
        """Judge all galleries with `curve`."""
        calibration = Calibration({sha256: curve})
        rows = []
        for gallery in galleries:
            pairs, cosines, same = gallery.similar_pairs(THRESHOLD)
            close = judged_at_close(gallery.tracklets, calibration)
            for pair, cosine, truth in zip(pairs, cosines.tolist(), same.tolist(), strict=True):
                first = calibration.at_arrival(sha256, cosine)
                assert first is not None
                rows.append((cosine, first.probability, close.get(pair, 0.0), truth))
        columns = np.array(rows, np.float64).reshape(-1, 4)
        return cls(*columns.T[:3], columns[:, 3].astype(bool))

    @classmethod
    def together(cls, parts: Sequence[Judged]) -> Judged:
        """Return the pairs of several as one."""
        columns = [
            np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__
        ]
        return cls(*columns)


def judged_at_close(
    tracklets: Mapping[str, PersonEmbedding], calibration: Calibration
) -> dict[tuple[str, str], float]:
    """Return the probability of each pair of keys that a gallery keeps once all is closed."""
    first = next(iter(tracklets.values()))
    gallery = Gallery(first.gallery_id)
    events: list[PersonEmbedding | VideoClosed] = list(tracklets.values())
    for video_id in sorted({one.video_id for one in tracklets.values()}):
        own = [one for one in tracklets.values() if one.video_id == video_id]
        events.append(
            VideoClosed.make(
                gallery_id=first.gallery_id,
                video_id=video_id,
                run_id=own[0].run_id,
                submitted_at=own[0].submitted_at,
                outcome="done",
                person_ids=[one.person_id for one in own],
                frame_count=0,
            )
        )
    for event in events:
        result = apply(
            gallery,
            event,
            similarity_threshold=THRESHOLD,
            occurred_at=first.submitted_at,
            calibration=calibration,
        )
        gallery.write(result.writes)
    return {
        pair: entry.judgement.probability
        for key in tracklets
        for other, entry in gallery.candidates_of(key, with_suppressed=True).items()
        if entry.judgement is not None and (pair := (min(key, other), max(key, other)))
    }


def pets_gallery(data: Path, weights: str, sha256: str) -> KnownGallery:
    """Return PETS09-S2L1 as `streamproc replay` sees it, with all defaults."""
    from streamproc import replay

    with tempfile.TemporaryDirectory() as out:
        replay(
            data / "videos" / "vtest.avi",
            persons=data / "persons" / "PETS09-S2L1.canonical_persons.npz",
            out=out,
            clustering__osnet_model=weights,
            animate=False,
        )
        lines = (Path(out) / "person_embeddings.jsonl").read_bytes().splitlines()
    tracklets = [PersonEmbedding.from_json(line) for line in lines]
    truth = json.loads((data / "gt" / "PETS09-S2L1.identity.json").read_text())["track_to_person"]
    assert {tracklet.model.weights_sha256 for tracklet in tracklets} == {sha256}
    return KnownGallery(
        {tracklet.person_key: tracklet for tracklet in tracklets},
        {tracklet.person_key: str(truth[str(tracklet.person_id)]) for tracklet in tracklets},
    )


def known_galleries(data: Path, embedder: Embedder, weights: str) -> dict[str, list[KnownGallery]]:
    """Return the galleries that metrics are computed on, by name."""
    sha256 = embedder.weights_sha256

    def without_vetoes(pictures: Pictures) -> KnownGallery:
        tracks = embed_all(embedder, pictures)
        chosen = [(who, place, vectors) for (who, place, _), vectors in tracks.items()]
        return gallery_of(chosen, np.zeros((len(tracks), len(tracks))), sha256)

    tracks = embed_all(embedder, test_pictures(data, by_sequence=True))
    rng = np.random.default_rng(2)
    people = {who for who, _, _ in tracks}
    drawn = []
    for kind in KINDS:
        drawn += [draw(tracks, people, rng, sha256, kind=kind) for _ in range(METRICS_GALLERIES)]
    return {
        "Market test100": [without_vetoes(test_pictures(data, by_sequence=False))],
        DRAWN: drawn,
        "PETS09-S2L1": [pets_gallery(data, weights, sha256)],
        "MOT17-mini halves": [without_vetoes(pictures) for pictures in mot_pictures(data).values()],
    }


def describe(name: str, judged: Judged, settings: Calibration, rng: np.random.Generator) -> str:
    """Return a line of metrics."""
    same = judged.same
    close = judged.at_close
    cosine = judged.similarity.clip(0, 1)
    shown = close >= settings.min_probability
    likely = close >= settings.likely_probability

    def error_of_shown(error: Callable[[np.ndarray, np.ndarray], float], of: np.ndarray) -> float:
        return error(of[shown], same[shown]) if shown.any() else 0.0

    def precision(chosen: np.ndarray, of_none: float) -> float:
        return float(same[chosen].mean()) if chosen.any() else of_none

    def recall(chosen: np.ndarray) -> float:
        return float(same[chosen].sum() / same.sum())

    by_chance = error_if_perfect(close, rng)
    shown_by_chance = error_if_perfect(close[shown], rng) if shown.any() else 0.0
    return (
        f"{name}: {len(same)} pairs, base rate {same.mean():.3f}; "
        f"ECE cosine {calibration_error(cosine, same):.3f}, "
        f"at arrival {calibration_error(judged.at_arrival, same):.3f}, "
        f"at close {calibration_error(close, same):.3f} (chance alone {by_chance:.3f}), "
        f"of the {shown.sum()} published, {precision(shown, 0):.3f} of them right, "
        f"{error_of_shown(calibration_error, close):.3f} (chance alone {shown_by_chance:.3f}; "
        f"swept {error_of_shown(swept_error, close):.3f}; "
        f"cosine {error_of_shown(calibration_error, cosine):.3f}); "
        f"candidates recall {recall(shown):.2f} precision {precision(shown, 1):.2f}; "
        f"likely recall {recall(likely):.2f} precision {precision(likely, 1):.2f}"
    )


def panels_of(judged: Mapping[str, Judged]) -> list[Panel]:
    """Return a reliability diagram of each set of pairs."""
    return [
        Panel(name, pairs.same, (pairs.at_close, pairs.similarity.clip(0, 1)))
        for name, pairs in judged.items()
    ]


def known_curves(path: Path) -> dict[str, Curve]:
    """Read the curves of a file, none where one is of another method."""
    if not path.is_file():
        return {}
    curves = json.loads(path.read_bytes())["curves"].values()
    if any(curve["method"] != METHOD for curve in curves):
        return {}
    return load_curves(path)


def with_linking(curves: Mapping[str, Curve], left_out: str | None = None) -> dict[str, Curve]:
    """Return the curves with the coefficients of `models/linking/learned`."""
    learned_of = all_coefficients(without=left_out)
    purity_of = all_purity()
    return {
        sha256: replace(curve, linking=learned_of.get(sha256), purity=purity_of.get(sha256))
        for sha256, curve in curves.items()
    }


def print_metrics(
    data: Path, embedder: Embedder, weights: str, curve: Curve, rng: np.random.Generator
) -> dict[str, Judged]:
    """Print the metrics of one curve; return the judged pairs by the name of their set."""
    print(
        f"== {embedder.name} {embedder.weights_sha256[:8]} {curve!r} "
        f"arrival {curve.arrival_coefficients} closing {curve.closing_coefficients} "
        f"beta {curve.beta_coefficients}"
    )
    judged = {
        name: Judged.of(galleries, curve, embedder.weights_sha256)
        for name, galleries in known_galleries(data, embedder, weights).items()
    }
    once = Judged.together([judged["Market test100"], judged["PETS09-S2L1"]])
    often = Judged.together([judged[DRAWN], judged["PETS09-S2L1"]])
    both = {"Market test100 and PETS": once, f"{DRAWN}, and PETS": often}
    for name, pairs in {**judged, **both}.items():
        print(describe(name, pairs, Calibration(), rng), flush=True)
    return judged


def main() -> None:
    """Fit, write, and print the metrics of each weights file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", nargs="*")
    parser.add_argument("--out", type=Path, default=CURVES)
    parser.add_argument(
        "--diagram", type=Path, help="reliability diagrams of what was not fitted on, SVG"
    )
    parser.add_argument("--figures-only", action="store_true", help="of the curves as they are")
    parser.add_argument("--leave-out", metavar="VIDEO", help="write curves that never saw it")
    args = parser.parse_args()
    if args.leave_out is not None:
        if args.data is not None or args.out == CURVES:
            parser.error("--leave-out takes --out FILE, another one than the package's, alone")
        args.out.write_bytes(curves_to_json(with_linking(load_curves(CURVES), args.leave_out)))
        return
    if not args.weights:
        parser.error("expected DATA and WEIGHTS")
    curves = known_curves(args.out)
    pictures = None if args.figures_only else train_pictures(args.data)
    rows: list[tuple[str, list[Panel]]] = []
    for name in args.weights:
        with tempfile.TemporaryDirectory() as cache:
            embedder = Embedder(find_weights(name, cache_folder=Path(cache)))
        sha256 = embedder.weights_sha256
        rng = np.random.default_rng(1)
        if pictures is not None:
            curves[sha256] = fit(embed_all(embedder, pictures), sha256, rng)
            args.out.write_bytes(curves_to_json(with_linking(curves)))
        judged = print_metrics(args.data, embedder, name, curves[sha256], rng)
        rows.append((embedder.name, panels_of(judged)))
    if args.diagram is not None:
        legend = ("calibrated, when the video is closed", "the cosine taken for a probability")
        args.diagram.write_text(diagram(rows, legend), encoding="utf-8")


if __name__ == "__main__":
    main()
