"""Calibration: what a probability is made of, and that a gallery comes to the same whatever the order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import closed, person, two_videos, unit_vector

from streamproc.errors import EventError, WeightsError
from streamproc.events import DuplicateCandidate, PersonEmbedding, Segments
from streamproc.gallery import Calibration, Curve, Gallery, GalleryScorer, apply, load_curves
from streamproc.gallery.calibration import scorer as module
from streamproc.gallery.calibration import whitening
from streamproc.gallery.calibration.curve import STRAIGHT, bend
from streamproc.gallery.gallery import Writes
from streamproc.networks.manifest import package_file
from streamproc.settings import Clustering

WEIGHTS = "a" * 64
DIM = 6
TIME = "2026-11-24T12:00:00Z"


ALONE = (-1.0, 6.0, 6.0, 0.0, 0.0, -0.5, 0.0)
CLOSED = (*ALONE, -0.5, 0.5, 1.0)


def always(log_odds):
    """Coefficients of who thinks the same of all pairs."""
    return (log_odds, *[0.0] * 9)


def make_curve(
    *, arrival=(-8.0, 10.0), alone=ALONE, closed=CLOSED, bent=STRAIGHT, dim=DIM
) -> Curve:
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    return Curve(
        mean=(0.1 * rng.normal(size=dim)).astype(np.float32),
        basis=basis.astype(np.float32),
        spread=np.array([0.5, 0.2], np.float32),
        rest=0.3 / (dim - 2),
        part_trace=0.1,
        arrival=arrival,
        alone=alone,
        closed=closed,
        bent=bent,
    )


def calibrated(**options) -> Calibration:
    return Calibration(
        {WEIGHTS: make_curve(**options)}, min_probability=0.3, likely_probability=0.7
    )


def feed(gallery, *events, calibration):
    said = []
    for event in events:
        outcome = apply(
            gallery, event, similarity_threshold=0.7, occurred_at=TIME, calibration=calibration
        )
        gallery.write(outcome.writes)
        said += outcome.events
    return said


def standing(gallery):
    return {(a, b): (entry.similarity, entry.judgement) for a, b, entry in gallery.pairs()}


def announced(events):
    """What a subscriber who keeps the last word on each candidate believes."""
    last = {}
    for event in events:
        if isinstance(event, DuplicateCandidate):
            last[event.persons[0].person_key, event.persons[1].person_key] = event
    return {
        pair: (
            event.similarity,
            module.Judgement(event.probability, event.band, event.calibration_id),
        )
        for pair, event in last.items()
        if event.state != "withdrawn"
    }


A, B = [1, 0, 0, 0, 0, 0], [0.9, np.sqrt(1 - 0.81), 0, 0, 0, 0]


@given(st.lists(st.floats(-60, 60), min_size=2), st.floats(0, 3), st.floats(0, 3), st.floats(-3, 3))
def test_bent_log_odds_keep_their_order(logits, low, high, shift):
    logits = np.sort(logits)
    assert (np.diff(bend(logits, (shift, low, high))) >= -1e-9).all()
    np.testing.assert_allclose(bend(logits, STRAIGHT), logits, atol=1e-9)


def test_weights_without_a_curve_are_judged_by_similarity_alone() -> None:
    said = feed(
        Gallery("g"),
        person(1, A),
        person(2, B),
        closed([1, 2]),
        calibration=Calibration({"b" * 64: make_curve()}),
    )
    assert [e.state for e in said] == ["proposed", "done"]
    assert said[0].probability is said[0].band is said[0].calibration_id is None


def test_at_arrival_the_probability_follows_from_the_similarity() -> None:
    calibration = calibrated()
    said = feed(Gallery("g"), person(1, A), person(2, B), calibration=calibration)
    assert said[0].probability == round(1 / (1 + np.exp(8 - 10 * 0.9)), 2) == 0.73
    assert said[0].band == "likely"
    assert said[0].calibration_id == calibration.curves[WEIGHTS].calibration_id


def test_what_is_not_likely_enough_is_held_back_and_proposed_when_the_gallery_says_otherwise() -> (
    None
):
    gallery = Gallery("g")
    calibration = calibrated(arrival=(-20.0, 10.0), closed=always(3.0))
    assert feed(gallery, person(1, A), person(2, B), calibration=calibration) == []
    assert standing(gallery) == {}
    said = feed(gallery, closed([1, 2]), calibration=calibration)
    assert [(e.state, getattr(e, "probability", None)) for e in said] == [
        ("proposed", 0.95),
        ("done", None),
    ]
    assert said[-1].candidate_count == 1
    assert standing(gallery) == announced(said)


def test_what_the_gallery_finds_unlikely_is_withdrawn_with_its_reason() -> None:
    gallery = Gallery("g")
    calibration = calibrated(arrival=(3.0, 0.0), closed=always(-3.0))
    said = feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)
    assert [(e.state, getattr(e, "reason", None)) for e in said] == [
        ("proposed", None),
        ("withdrawn", "below-probability"),
        ("done", None),
    ]
    assert (said[1].probability, said[1].band, said[1].similarity) == (0.05, "uncertain", 0.9)
    assert said[-1].candidate_count == 0
    assert (
        feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)[:-1]
        == []
    )


def test_a_probability_that_stays_is_not_said_again() -> None:
    gallery = Gallery("g")
    calibration = calibrated(arrival=(1.0, 0.0), closed=always(1.0))
    said = feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)
    assert [e.state for e in said] == ["proposed", "done"]


def test_a_person_whose_new_run_is_less_likely_is_withdrawn_at_once() -> None:
    gallery = Gallery("g")
    calibration = calibrated(closed=always(3.0))
    feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)
    again = [
        person(i, v, run="r2", minute=1)
        for i, v in ((1, A), (2, [0.71, np.sqrt(1 - 0.71**2), 0, 0, 0, 0]))
    ]
    said = feed(gallery, *again, calibration=calibration)
    assert [(e.state, e.reason) for e in said] == [("withdrawn", "below-probability")]


def test_the_fewer_others_a_person_may_be_the_likelier_each() -> None:
    curve = make_curve()
    vectors = np.random.default_rng(3).normal(size=(6, DIM))

    def chance(seen_with):
        people = [
            person(i, v, seen_with=seen_with if i == 0 else ()) for i, v in enumerate(vectors)
        ]
        return GalleryScorer(curve, {p.person_key: p for p in people}).probabilities(
            [("v/0", "v/1")]
        )[0]

    assert chance([]) < chance([2]) < chance([2, 3, 4, 5])


def test_who_is_like_others_too_is_less_likely_this_one() -> None:
    curve = make_curve(closed=(*ALONE, -1.0, 0.0, 0.0))
    people = {
        f"v/{i}": person(i, v) for i, v in enumerate(np.random.default_rng(3).normal(size=(6, DIM)))
    }
    scorer, pair = GalleryScorer(curve, people), ("v/0", "v/1")

    def chance(*others):
        return scorer.probabilities([pair, *others])[0]

    assert chance() > chance(("v/0", "v/2")) > chance(("v/0", "v/2"), ("v/1", "v/3"))
    assert chance() == chance(("v/2", "v/3")), "others that are like each other are no rivals"


def test_where_many_have_a_double_each_pair_is_likelier_one_person() -> None:
    people = {
        f"v/{i}": person(i, v) for i, v in enumerate(np.random.default_rng(3).normal(size=(6, DIM)))
    }
    scorer = GalleryScorer(make_curve(closed=(*ALONE, 0.0, 1.0, 0.0)), people)
    few, many = ([("v/0", "v/1"), *others] for others in ([], [("v/2", "v/3"), ("v/4", "v/5")]))
    assert scorer.probabilities(few)[0] < scorer.probabilities(many)[0]


def test_of_two_pairs_alike_the_one_with_fewer_crops_is_likelier_one_person() -> None:
    curve = make_curve(closed=(-1.0, 6.0, 6.0, 0.0, 0.0, -0.5, -1.0, 0.0, 0.0, 0.0))
    vectors = np.random.default_rng(3).normal(size=(6, DIM))

    def chance(crops):
        people = [person(i, v, crops=crops if i < 2 else 8) for i, v in enumerate(vectors)]
        return GalleryScorer(curve, {p.person_key: p for p in people}).probabilities(
            [("v/0", "v/1")]
        )[0]

    assert chance(1) > chance(4) > chance(8)
    assert chance(8) == chance(50), "more crops than curves are fitted on count as so many"


def test_the_more_crops_the_more_likeness_and_unlikeness_say() -> None:
    curve = make_curve(closed=(0.0, 0.0, 0.0, 3.0, *[0.0] * 6))
    vectors = np.random.default_rng(3).normal(size=(6, DIM))
    people = {
        crops: {f"v/{i}": person(i, v, crops=crops) for i, v in enumerate(vectors)}
        for crops in (1, 4, 8)
    }
    cosine = GalleryScorer(curve, people[1]).features([("v/0", "v/1"), ("v/0", "v/2")])[:, 0]
    assert cosine.min() < 0 < cosine.max()
    chances = [
        GalleryScorer(curve, group).probabilities([("v/0", "v/1"), ("v/0", "v/2")])
        for group in people.values()
    ]
    np.testing.assert_allclose(chances[0], 0.5)
    assert (np.diff(chances, axis=0) * cosine > 0).all()


def test_the_crops_that_count_are_those_embedded_not_those_cut() -> None:
    people = {
        f"v/{i}": person(i, v, crops=2).model_copy(update={"crop_count": 50})
        for i, v in enumerate(np.eye(DIM))
    }
    np.testing.assert_allclose(
        GalleryScorer(make_curve(), people).features([("v/0", "v/1")])[0, 5], np.log(2)
    )


def test_a_person_of_a_wrong_length_under_known_weights_keeps_its_first_judgement() -> None:
    said = feed(
        Gallery("g"), person(1, [1, 0]), person(2, [1, 0]), closed([1, 2]), calibration=calibrated()
    )
    assert [e.state for e in said] == ["proposed", "done"]


def test_one_producers_huge_parts_do_not_outweigh_all_others() -> None:
    people = {f"v/{i}": person(i, v, segments=[v, v]) for i, v in enumerate(np.eye(DIM))}
    rough = people | {"v/9": person(9, np.ones(DIM), segments=1e18 * np.eye(DIM)[:2])}
    alike = people | {"v/9": person(9, np.ones(DIM), segments=np.eye(DIM)[:2])}
    pairs = [("v/1", "v/2")]
    found = [GalleryScorer(make_curve(), group).features(pairs) for group in (rough, alike)]
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("values", [{"data": "AAAA"}, {"shape": [2, DIM]}, {"data": "!"}])
def test_parts_that_are_not_what_they_say_are_a_bad_event(values) -> None:
    event = person(1, A, segments=[A])
    content = json.loads(event.to_json())
    content["segments"] |= values
    with pytest.raises(EventError, match="expected base64 of"):
        PersonEmbedding.from_json(json.dumps(content).encode())


def test_parts_that_are_not_finite_are_a_bad_event() -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        Segments.of(np.full((1, 2), np.nan), [1])


def test_of_a_large_gallery_a_sample_serves_whose_choice_knows_no_order(monkeypatch) -> None:
    monkeypatch.setattr(whitening, "SAMPLED_PERSONS", 4)
    vectors = np.random.default_rng(5).normal(size=(12, DIM))
    people = [person(i, v, segments=[v, v + 0.1]) for i, v in enumerate(vectors)]
    pairs = [("v/0", "v/7"), ("v/3", "v/11")]
    orders = (people, people[::-1])
    forward, backward = (
        GalleryScorer(make_curve(), {p.person_key: p for p in order}).features(pairs)
        for order in orders
    )
    np.testing.assert_array_equal(forward, backward)


def test_many_pairs_are_judged_in_parts_that_come_to_the_same(monkeypatch) -> None:
    vectors = np.random.default_rng(5).normal(size=(12, DIM))
    people = {f"v/{i}": person(i, v) for i, v in enumerate(vectors)}
    pairs = [(a, b) for a in people for b in people if a < b]
    scorer = GalleryScorer(make_curve(), people)
    whole = scorer.features(pairs)
    monkeypatch.setattr(whitening, "_PAIRS_AT_ONCE", 5)
    np.testing.assert_allclose(scorer.features(pairs), whole)


def test_a_curve_comes_back_from_its_json_and_its_id_says_what_it_is() -> None:
    curve = make_curve()
    again = Curve.from_json(json.loads(json.dumps(curve.to_json())))
    assert again.calibration_id == curve.calibration_id
    assert make_curve(arrival=(0.0, 1.0)).calibration_id != curve.calibration_id


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"closed": [1, 2]},
        {"alone": [1] * 6},
        {"bent": [0, 1]},
        {"bent": [0, -1, 1]},
        {"rest": float("nan")},
        {"mean": "AAAA"},
        {"arrival": None},
        {"basis": 1},
    ],
)
def test_what_is_no_curve_is_refused_in_one_line(tmp_path, change) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(
        json.dumps({"curves": {WEIGHTS: make_curve().to_json() | change}}).replace("NaN", "1e999")
    )
    with pytest.raises(WeightsError, match=r"expected calibration curves by weights \("):
        load_curves(path)


def test_who_has_a_curve_of_an_older_version_is_told_what_to_do(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"curves": {WEIGHTS: make_curve().to_json() | {"method": "rivals-1"}}})
    )
    with pytest.raises(WeightsError, match="got 'rivals-1'; fit it anew with streamproc calibrate"):
        load_curves(path)


def test_a_missing_file_of_curves_is_named(tmp_path) -> None:
    with pytest.raises(WeightsError, match="expected the calibration curves"):
        load_curves(tmp_path / "none.json")


def test_the_packages_own_weights_have_a_curve() -> None:
    from streamproc.reid.export import find_weights

    curves = load_curves(package_file("calibration.json"))
    manifest = json.loads(package_file("manifest.json").read_text())
    own = next(entry["sha256"] for entry in manifest["models"] if entry["url"] is None)
    assert find_weights(None, cache_folder=package_file("none")).name
    assert own in curves
    assert all(
        min(c.arrival[1], *c.alone[1:4], *c.closed[1:4]) > 0 > c.closed[7] for c in curves.values()
    )


def test_the_settings_and_the_core_have_the_same_defaults() -> None:
    calibration, settings = Calibration(), Clustering()
    assert calibration.min_probability == settings.min_probability
    assert calibration.likely_probability == settings.likely_probability


@st.composite
def galleries(draw):
    """Persons of two videos with random vectors, parts and vetoes, some of unknown weights; orders; a curve."""
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 7))
    rng = np.random.default_rng(seed)
    events = two_videos(rng, count, parts=True, weights=(WEIGHTS, "b" * 64))
    curve = make_curve(
        arrival=(rng.normal(-6, 3), 8.0),
        closed=(rng.normal(), 4.0, 4.0, 1.0, rng.normal(), -0.5, -1.0, -1.0, 1.0, 1.0),
    )
    calibration = Calibration({WEIGHTS: curve}, min_probability=0.3, likely_probability=0.7)
    return events, count, calibration


def in_order(events, count, rng):
    """The events of each video in any order, one video after the other or mixed, each closed after its last person."""
    order = list(rng.permutation(len(events)))
    left = dict.fromkeys(("v", "w"), count)
    sequence = []
    for i in order:
        event = events[i]
        sequence.append(event)
        left[event.video_id] -= 1
        if not left[event.video_id]:
            sequence.append(closed(list(range(count)), video_id=event.video_id))
    return sequence


@given(galleries(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_once_all_videos_are_closed_their_order_makes_no_difference(
    data, one_seed, other_seed
) -> None:
    """Candidates, probabilities, bands, and what a subscriber believes."""
    events, count, calibration = data
    outcomes = []
    for seed in (one_seed, other_seed):
        gallery = Gallery("g")
        said = feed(
            gallery, *in_order(events, count, np.random.default_rng(seed)), calibration=calibration
        )
        assert standing(gallery).keys() == announced(said).keys()
        for pair, (similarity, judgement) in standing(gallery).items():
            believed = announced(said)[pair]
            assert believed[0] == similarity
            assert believed[1] == (judgement or module.Judgement(None, None, None))
        outcomes.append(standing(gallery))
    assert outcomes[0] == outcomes[1]


@given(galleries(), st.integers(0, 2**32 - 1), st.data())
def test_any_repeat_changes_nothing(data, seed, choose) -> None:
    events, count, calibration = data
    sequence = in_order(events, count, np.random.default_rng(seed))
    repeated = list(sequence)
    for _ in range(choose.draw(st.integers(1, 5))):
        i = choose.draw(st.integers(0, len(sequence) - 1))
        after = repeated.index(sequence[i])
        repeated.insert(choose.draw(st.integers(after + 1, len(repeated))), sequence[i])
    one, other = Gallery("g"), Gallery("g")
    said_one = feed(one, *sequence, calibration=calibration)
    said_other = feed(other, *repeated, calibration=calibration)
    assert one.rows == other.rows
    assert announced(said_one) == announced(said_other)
    assert {e.event_id for e in said_one} == {e.event_id for e in said_other}


@given(galleries(), st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_a_crash_while_a_closing_is_written_loses_and_invents_nothing(data, seed, written) -> None:
    """Events are out, some rows are written, the record is not: the closing comes again."""
    events, count, calibration = data
    sequence = in_order(events, count, np.random.default_rng(seed))
    gallery, unharmed = Gallery("g"), Gallery("g")
    said = feed(gallery, *sequence[:-1], calibration=calibration)
    outcome = apply(
        gallery, sequence[-1], similarity_threshold=0.7, occurred_at=TIME, calibration=calibration
    )
    said += outcome.events
    gallery.write(Writes(dict(list(outcome.writes.rows.items())[:written])))
    said += feed(gallery, sequence[-1], calibration=calibration)
    said_unharmed = feed(unharmed, *sequence, calibration=calibration)
    assert gallery.rows == unharmed.rows
    assert announced(said) == announced(said_unharmed)
    assert said[-1].event_id == said_unharmed[-1].event_id


@given(galleries(), galleries(), st.integers(0, 7))
def test_a_later_run_leaves_what_it_would_have_left_alone(first, second, kept) -> None:
    """Run 2 of video v, with other vectors and fewer persons."""
    old, count, calibration = first
    new = [
        e.model_copy(update={"run_id": "r2", "submitted_at": "2026-11-24T10:00:00Z"})
        for e in second[0]
        if e.video_id == "v" and e.person_id < kept
    ]
    ids = [e.person_id for e in new]
    ending = closed(ids, run="r2", minute=60)
    gallery = Gallery("g")
    said = feed(
        gallery,
        *in_order(old, count, np.random.default_rng(0)),
        *new,
        ending,
        calibration=calibration,
    )
    fresh = Gallery("g")
    feed(fresh, *(e for e in old if e.video_id == "w"), *new, ending, calibration=calibration)
    assert standing(gallery) == standing(fresh)
    assert announced(said) == {
        pair: (similarity, judgement or module.Judgement(None, None, None))
        for pair, (similarity, judgement) in standing(gallery).items()
    }


def synthetic_tracks(rng, *, dim=16, people=45):
    """Persons whose tracks differ along some directions more than along others; in two cameras, one of them twice."""
    spread = 0.15 * np.linspace(0.2, 2, dim)
    tracks = {}
    for i in range(people):
        centre = unit_vector(rng.normal(size=dim))
        for camera, sequence in (("c1", "s1"), ("c1", "s2"), ("c2", "s1")):
            middle = centre + spread * rng.normal(size=dim)
            crops = middle + 0.2 * spread * rng.normal(size=(6, dim))
            tracks[f"{i:04}", camera, sequence] = np.stack(
                [unit_vector(crop) for crop in crops]
            ).astype(np.float32)
    return tracks


def test_galleries_in_pieces_are_no_larger_for_how_broken_their_people_are() -> None:
    """Else a curve fitted on them would take a large gallery for one of many doubles."""
    from models import known_people

    rng = np.random.default_rng(3)
    tracks = {key: vectors[:1] for key, vectors in synthetic_tracks(rng, people=240).items()}
    who = {name for name, _, _ in tracks}
    galleries = [known_people.draw(tracks, who, rng, WEIGHTS, kind="in pieces") for _ in range(80)]
    sizes = np.array([len(gallery.persons) for gallery in galleries])
    broken = sizes / [len(set(gallery.identity.values())) for gallery in galleries]
    assert broken.min() < 1.3 < broken.max() - 0.3
    assert abs(np.corrcoef(sizes, broken)[0, 1]) < 0.3


def test_a_curve_fitted_on_some_people_is_right_about_others(monkeypatch) -> None:
    """Better than none, and nearly as often right as it says."""
    from models import calibrate, known_people
    from streamproc.gallery.calibration.reliability import calibration_error, diagram

    monkeypatch.setattr(calibrate, "GALLERIES", 12)
    monkeypatch.setattr(calibrate, "DIRECTIONS", 4)
    monkeypatch.setattr(calibrate, "THRESHOLD", 0.3)
    rng = np.random.default_rng(2)
    curve = calibrate.fit(synthetic_tracks(rng), WEIGHTS, rng)
    others = synthetic_tracks(rng)
    who = {name for name, _, _ in others}
    held = [
        known_people.draw(others, who, rng, WEIGHTS, kind=kind)
        for kind in known_people.KINDS
        for _ in range(6)
    ]
    judged = calibrate.Judged.of(held, curve, WEIGHTS)
    assert 0.02 < judged.same.mean() < 0.6
    errors = [
        calibration_error(c, judged.same) for c in (judged.at_close, judged.similarity.clip(0, 1))
    ]
    assert errors[0] < 0.06 < errors[1]
    assert "recall" in calibrate.describe("x", judged, Calibration(), rng)
    assert (
        diagram([("w", calibrate.panels_of({"x": judged}))], ("one", "other")).count("<circle")
        == 20
    )
