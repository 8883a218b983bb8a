"""Calibration: what a probability depends on, and that the order of events makes no difference."""

from __future__ import annotations

import itertools
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
from streamproc.gallery.calibration.curve import NO_BETA, beta_calibrate
from streamproc.gallery.gallery import Writes
from streamproc.networks.manifest import package_file
from streamproc.settings import Clustering

WEIGHTS = "a" * 64
DIM = 6
TIME = "2026-11-24T12:00:00Z"


PAIR = (-1.0, 6.0, 6.0, 0.0, 0.0, -0.5, 0.0)
CLOSING = (*PAIR, -0.5, 0.5, 1.0)


def always(log_odds):
    """Coefficients that give every pair the same log-odds."""
    return (log_odds, *[0.0] * 9)


def make_curve(*, arrival=(-8.0, 10.0), pair=PAIR, closing=CLOSING, beta=NO_BETA, dim=DIM) -> Curve:
    """A curve of random but fixed numbers, with the coefficients given."""
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    return Curve(
        mean=(0.1 * rng.normal(size=dim)).astype(np.float32),
        basis=basis.astype(np.float32),
        basis_variances=np.array([0.5, 0.2], np.float32),
        rest_variance=0.3 / (dim - 2),
        within_track_trace=0.1,
        arrival_coefficients=arrival,
        pair_coefficients=pair,
        closing_coefficients=closing,
        beta_coefficients=beta,
    )


def calibrated(**options) -> Calibration:
    """A calibration that judges WEIGHTS by `make_curve`; thresholds 0.3 and 0.7."""
    return Calibration(
        {WEIGHTS: make_curve(**options)}, min_probability=0.3, likely_probability=0.7
    )


def feed(gallery, *events, calibration):
    """Apply and write the events one after the other; return what they announce."""
    said = []
    for event in events:
        outcome = apply(
            gallery, event, similarity_threshold=0.7, occurred_at=TIME, calibration=calibration
        )
        gallery.write(outcome.writes)
        said += outcome.events
    return said


def standing(gallery):
    """The similarity and judgement of each candidate that the gallery holds."""
    return {(a, b): (entry.similarity, entry.judgement) for a, b, entry in gallery.candidates()}


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


A = [1, 0, 0, 0, 0, 0]
B = [0.9, np.sqrt(1 - 0.81), 0, 0, 0, 0]


@given(st.lists(st.floats(-60, 60), min_size=2), st.floats(0, 3), st.floats(0, 3), st.floats(-3, 3))
def test_beta_calibration_keeps_the_order_of_log_odds(logits, low, high, shift):
    """Beta calibration keeps log-odds in order, and NO_BETA leaves them as they are."""
    logits = np.sort(logits)
    assert (np.diff(beta_calibrate(logits, (shift, low, high))) >= -1e-9).all()
    np.testing.assert_allclose(beta_calibrate(logits, NO_BETA), logits, atol=1e-9)


def test_weights_without_a_curve_are_judged_by_similarity_alone() -> None:
    """Without a curve a pair is proposed with no probability, band or calibration id."""
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
    """A new pair's probability is the logistic of its weighted similarity, and sets its band."""
    calibration = calibrated()
    said = feed(Gallery("g"), person(1, A), person(2, B), calibration=calibration)
    assert said[0].probability == round(1 / (1 + np.exp(8 - 10 * 0.9)), 2) == 0.73
    assert said[0].band == "likely"
    assert said[0].calibration_id == calibration.curves[WEIGHTS].calibration_id


def test_a_suppressed_pair_is_proposed_once_closing_makes_it_probable() -> None:
    """An improbable pair is proposed only once the closed video makes it probable."""
    gallery = Gallery("g")
    calibration = calibrated(arrival=(-20.0, 10.0), closing=always(3.0))
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
    """A pair that closing makes improbable is withdrawn once, as below-probability."""
    gallery = Gallery("g")
    calibration = calibrated(arrival=(3.0, 0.0), closing=always(-3.0))
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
    """Closing announces nothing of a pair whose probability it does not change."""
    gallery = Gallery("g")
    calibration = calibrated(arrival=(1.0, 0.0), closing=always(1.0))
    said = feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)
    assert [e.state for e in said] == ["proposed", "done"]


def test_a_person_whose_new_run_is_less_likely_is_withdrawn_at_once() -> None:
    """A later run that makes a pair improbable withdraws it before the video is closed."""
    gallery = Gallery("g")
    calibration = calibrated(closing=always(3.0))
    feed(gallery, person(1, A), person(2, B), closed([1, 2]), calibration=calibration)
    again = [
        person(i, v, run="r2", minute=1)
        for i, v in ((1, A), (2, [0.71, np.sqrt(1 - 0.71**2), 0, 0, 0, 0]))
    ]
    said = feed(gallery, *again, calibration=calibration)
    assert [(e.state, e.reason) for e in said] == [("withdrawn", "below-probability")]


def test_the_fewer_others_a_person_may_be_the_likelier_each() -> None:
    """The more persons are ruled out by being seen beside one, the likelier each that is left."""
    curve = make_curve()
    vectors = np.random.default_rng(3).normal(size=(6, DIM))

    def chance(seen_with):
        people = [person(0, vectors[0], seen_with=seen_with)]
        people += [person(i, vectors[i]) for i in range(1, 6)]
        return GalleryScorer(curve, {p.person_key: p for p in people}).probabilities(
            [("v/0", "v/1")]
        )[0]

    assert chance([]) < chance([2]) < chance([2, 3, 4, 5])


def test_who_is_like_others_too_is_less_likely_this_one() -> None:
    """Each further pair of one of its persons makes a pair less likely, and other pairs do not."""
    curve = make_curve(closing=(*PAIR, -1.0, 0.0, 0.0))
    people = {
        f"v/{i}": person(i, v) for i, v in enumerate(np.random.default_rng(3).normal(size=(6, DIM)))
    }
    scorer = GalleryScorer(curve, people)
    pair = ("v/0", "v/1")

    def chance(*others):
        return scorer.probabilities([pair, *others])[0]

    assert chance() > chance(("v/0", "v/2")) > chance(("v/0", "v/2"), ("v/1", "v/3"))
    assert chance() == chance(("v/2", "v/3")), "others that are like each other are no competitors"


def test_where_duplicates_are_frequent_each_pair_is_likelier_one_person() -> None:
    """The more similar pairs a gallery has, the likelier each is one person."""
    people = {
        f"v/{i}": person(i, v) for i, v in enumerate(np.random.default_rng(3).normal(size=(6, DIM)))
    }
    scorer = GalleryScorer(make_curve(closing=(*PAIR, 0.0, 1.0, 0.0)), people)
    few, many = ([("v/0", "v/1"), *others] for others in ([], [("v/2", "v/3"), ("v/4", "v/5")]))
    assert scorer.probabilities(few)[0] < scorer.probabilities(many)[0]


def test_of_two_pairs_alike_the_one_with_fewer_crops_is_likelier_one_person() -> None:
    """Fewer crops make a pair likelier where their weight is negative; above 8 they count as 8."""
    curve = make_curve(closing=(-1.0, 6.0, 6.0, 0.0, 0.0, -0.5, -1.0, 0.0, 0.0, 0.0))
    vectors = np.random.default_rng(3).normal(size=(6, DIM))

    def chance(crops):
        people = [person(i, vectors[i], crops=crops) for i in range(2)]
        people += [person(i, vectors[i], crops=8) for i in range(2, 6)]
        return GalleryScorer(curve, {p.person_key: p for p in people}).probabilities(
            [("v/0", "v/1")]
        )[0]

    assert chance(1) > chance(4) > chance(8)
    assert chance(8) == chance(50), "more crops than curves are fitted on count as so many"


def test_the_more_crops_the_more_likeness_and_unlikeness_say() -> None:
    """More crops move a like pair's probability up and an unlike pair's down."""
    curve = make_curve(closing=(0.0, 0.0, 0.0, 3.0, *[0.0] * 6))
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
    """The feature of crops counts the embedded ones, not `crop_count`."""
    people = {
        f"v/{i}": person(i, v, crops=2).model_copy(update={"crop_count": 50})
        for i, v in enumerate(np.eye(DIM))
    }
    np.testing.assert_allclose(
        GalleryScorer(make_curve(), people).features([("v/0", "v/1")])[0, 5], np.log(2)
    )


def test_a_person_of_a_wrong_length_under_known_weights_keeps_its_first_judgement() -> None:
    """Closing leaves a candidate as it is where its vectors are not of the curve's length."""
    said = feed(
        Gallery("g"), person(1, [1, 0]), person(2, [1, 0]), closed([1, 2]), calibration=calibrated()
    )
    assert [e.state for e in said] == ["proposed", "done"]


def test_one_producers_huge_parts_do_not_outweigh_all_others() -> None:
    """Track segments of huge length change the features of other pairs no more than unit ones."""
    people = {f"v/{i}": person(i, v, segments=[v, v]) for i, v in enumerate(np.eye(DIM))}
    rough = people | {"v/9": person(9, np.ones(DIM), segments=1e18 * np.eye(DIM)[:2])}
    alike = people | {"v/9": person(9, np.ones(DIM), segments=np.eye(DIM)[:2])}
    pairs = [("v/1", "v/2")]
    found = [GalleryScorer(make_curve(), group).features(pairs) for group in (rough, alike)]
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("values", [{"data": "AAAA"}, {"shape": [2, DIM]}, {"data": "!"}])
def test_parts_that_are_not_what_they_say_are_a_bad_event(values) -> None:
    """Segments whose bytes do not match their shape raise an EventError."""
    event = person(1, A, segments=[A])
    content = json.loads(event.to_json())
    content["segments"] |= values
    with pytest.raises(EventError, match="expected base64 of"):
        PersonEmbedding.from_json(json.dumps(content).encode())


def test_parts_that_are_not_finite_are_a_bad_event() -> None:
    """Segments that hold NaN are refused."""
    with pytest.raises(ValueError, match="expected finite numbers"):
        Segments.of(np.full((1, 2), np.nan), [1])


def test_of_a_large_gallery_a_sample_serves_whose_choice_knows_no_order(monkeypatch) -> None:
    """Features of a sampled gallery do not depend on the order of its persons."""
    monkeypatch.setattr(whitening, "SAMPLED_TRACKLETS", 4)
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
    """Features of many pairs are the same in chunks as in one piece."""
    vectors = np.random.default_rng(5).normal(size=(12, DIM))
    people = {f"v/{i}": person(i, v) for i, v in enumerate(vectors)}
    pairs = list(itertools.combinations(sorted(people), 2))
    scorer = GalleryScorer(make_curve(), people)
    whole = scorer.features(pairs)
    monkeypatch.setattr(whitening, "_PAIRS_AT_ONCE", 5)
    np.testing.assert_allclose(scorer.features(pairs), whole)


def test_a_curve_comes_back_from_its_json_and_its_id_says_what_it_is() -> None:
    """A curve read from its JSON has the same id, and one with other numbers another."""
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
    """A curve with a wrong field is refused with the words that say what was expected."""
    path = tmp_path / "calibration.json"
    path.write_text(
        json.dumps({"curves": {WEIGHTS: make_curve().to_json() | change}}).replace("NaN", "1e999")
    )
    with pytest.raises(WeightsError, match=r"expected calibration curves by weights \("):
        load_curves(path)


def test_who_has_a_curve_of_an_older_version_is_told_what_to_do(tmp_path) -> None:
    """A curve of an older method is refused with the command to fit it again."""
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"curves": {WEIGHTS: make_curve().to_json() | {"method": "rivals-1"}}})
    )
    with pytest.raises(WeightsError, match="got 'rivals-1'; fit it anew with streamproc calibrate"):
        load_curves(path)


def test_a_missing_file_of_curves_is_named(tmp_path) -> None:
    """A missing calibration file raises a WeightsError that says what was expected."""
    with pytest.raises(WeightsError, match="expected the calibration curves"):
        load_curves(tmp_path / "none.json")


def test_the_packages_own_weights_have_a_curve() -> None:
    """The default weights have a curve, and in every curve likeness counts for one person."""
    from streamproc.reid.export import find_weights

    curves = load_curves(package_file("calibration.json"))
    manifest = json.loads(package_file("manifest.json").read_text())
    own = next(entry["sha256"] for entry in manifest["models"] if entry["url"] is None)
    assert find_weights(None, cache_folder=package_file("none")).name
    assert own in curves
    assert all(
        min(c.arrival_coefficients[1], *c.pair_coefficients[1:4], *c.closing_coefficients[1:4])
        > 0
        > c.closing_coefficients[7]
        for c in curves.values()
    )


def test_the_settings_and_the_core_have_the_same_defaults() -> None:
    """The probabilities' defaults in the settings are those of `Calibration`."""
    calibration = Calibration()
    settings = Clustering()
    assert calibration.min_probability == settings.min_probability
    assert calibration.likely_probability == settings.likely_probability


@st.composite
def galleries(draw):
    """Persons of two videos with random vectors, segments and vetoes, and a calibration.

    Some of them have weights that no curve is known for.
    """
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(1, 7))
    rng = np.random.default_rng(seed)
    events = two_videos(rng, count, parts=True, weights=(WEIGHTS, "b" * 64))
    curve = make_curve(
        arrival=(rng.normal(-6, 3), 8.0),
        closing=(rng.normal(), 4.0, 4.0, 1.0, rng.normal(), -0.5, -1.0, -1.0, 1.0, 1.0),
    )
    calibration = Calibration({WEIGHTS: curve}, min_probability=0.3, likely_probability=0.7)
    return events, count, calibration


def shuffled(events, count, rng):
    """The events of both videos in random order, each video closed after its last person."""
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
    """Any order ends in the same candidates, probabilities and bands, and announces them."""
    events, count, calibration = data
    outcomes = []
    for seed in (one_seed, other_seed):
        gallery = Gallery("g")
        said = feed(
            gallery, *shuffled(events, count, np.random.default_rng(seed)), calibration=calibration
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
    """Events that come again change neither the rows nor what is announced."""
    events, count, calibration = data
    sequence = shuffled(events, count, np.random.default_rng(seed))
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
    """A closing that was written in part and comes again ends as if it had come once."""
    events, count, calibration = data
    sequence = shuffled(events, count, np.random.default_rng(seed))
    gallery = Gallery("g")
    unharmed = Gallery("g")
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
    """A second run, with other vectors and fewer persons, leaves what it alone would leave."""
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
        *shuffled(old, count, np.random.default_rng(0)),
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
    """Crops' vectors by person, camera and sequence; each person has three tracks.

    Persons differ along some directions more than along others.
    """
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
    """How often persons are split in a gallery "in pieces" does not depend on its size.

    Otherwise a curve fitted on them would take a large gallery for one of many duplicates.
    """
    from models import known_people

    rng = np.random.default_rng(3)
    tracks = {key: vectors[:1] for key, vectors in synthetic_tracks(rng, people=240).items()}
    who = {name for name, _, _ in tracks}
    galleries = [known_people.draw(tracks, who, rng, WEIGHTS, kind="in pieces") for _ in range(80)]
    sizes = np.array([len(gallery.tracklets) for gallery in galleries])
    broken = sizes / [len(set(gallery.identity.values())) for gallery in galleries]
    assert broken.min() < 1.3 < broken.max() - 0.3
    assert abs(np.corrcoef(sizes, broken)[0, 1]) < 0.3


def test_a_curve_fitted_on_some_people_is_right_about_others(monkeypatch) -> None:
    """On other people a fitted curve errs by less than 0.06, and plain similarity by more."""
    from models import calibrate, known_people
    from streamproc.gallery.calibration.reliability import calibration_error, diagram

    monkeypatch.setattr(calibrate, "GALLERIES", 12)
    monkeypatch.setattr(calibrate, "DIRECTIONS", 4)
    monkeypatch.setattr(calibrate, "THRESHOLD", 0.3)
    rng = np.random.default_rng(2)
    curve = calibrate.fit(synthetic_tracks(rng), WEIGHTS, rng)
    others = synthetic_tracks(rng)
    who = {name for name, _, _ in others}
    kinds = np.repeat(list(known_people.KINDS), 6).tolist()
    unseen = [known_people.draw(others, who, rng, WEIGHTS, kind=kind) for kind in kinds]
    judged = calibrate.Judged.of(unseen, curve, WEIGHTS)
    assert 0.02 < judged.same.mean() < 0.6
    errors = [
        calibration_error(c, judged.same) for c in (judged.at_close, judged.similarity.clip(0, 1))
    ]
    assert errors[0] < 0.06 < errors[1]
    assert "recall" in calibrate.describe("x", judged, Calibration(), rng)
    drawing = diagram([("w", calibrate.panels_of({"x": judged}))], ("one", "other"))
    assert drawing.count("<circle") == 20
