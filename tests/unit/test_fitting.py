"""Fitting curves: what holds for any data, and that figures are of people not fitted on."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persons import person

from streamproc.gallery import Curve
from streamproc.gallery.calibration.curve import (
    NO_BETA,
    beta_calibrate,
    curves_to_json,
    load_curves,
    sigmoid,
)
from streamproc.gallery.calibration.fitting import (
    KNOWN_CURVE_PAIRS,
    Examples,
    KnownGallery,
    cross_validated,
    fit_beta,
    logistic,
    neutral_curve,
    predict,
    refit,
)
from streamproc.gallery.calibration.reliability import (
    Panel,
    calibration_error,
    diagram,
    error_if_perfect,
    log_losses,
    swept_error,
)

DIM = 6


def start(
    *,
    arrival=(-20.0, 22.0),
    closed=(1.0, 7.0, 8.0, 2.0, -2.0, -1.5, -1.0, -0.8, 1.0, 1.0),
    beta=NO_BETA,
) -> Curve:
    """A curve to start from, with mean 0 and equal spread in all directions."""
    flat = {
        "mean": np.zeros(DIM, np.float32),
        "basis": np.zeros((0, DIM), np.float32),
        "basis_variances": np.zeros(0, np.float32),
    }
    return Curve(
        **flat,
        rest_variance=1 / DIM,
        within_track_trace=0.1,
        arrival_coefficients=arrival,
        pair_coefficients=(0.0,) * 7,
        closing_coefficients=closed,
        beta_coefficients=beta,
    )


def examples(rng, count, *, people=40, truth=None) -> Examples:
    """Pairs as galleries have them.

    `truth` (features) gives the log-odds; without it the labels are tossed.
    """
    similarity = rng.uniform(0.7, 1, count)
    cosine = similarity - 0.6
    one_video = rng.integers(0, 2, count)
    most = (5, 2.1, 4, 1)  # of the logs of others and crops, of competitors, of duplicates
    others, crops, *among = rng.uniform(0, most, (count, 4)).T
    likeness = (cosine * one_video, cosine * (1 - one_video), cosine * crops)
    sizes = one_video * rng.uniform(-1.5, 0.5, count)  # what they say
    features = np.c_[*likeness, one_video, others, crops, *among, sizes]
    chance = np.full(count, 0.5) if truth is None else sigmoid(truth(features))
    return Examples(
        similarity, features, rng.random(count) < chance, rng.integers(0, people, (count, 2))
    )


seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 200)


def test_the_regression_finds_the_odds_that_made_its_data() -> None:
    """The regression finds the coefficients that labels were drawn from, within 0.06."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40_000, 2))
    same = rng.random(40_000) < sigmoid(-1 + features @ [2, -0.5])
    found = logistic(features, same, np.ones(40_000))
    np.testing.assert_allclose(found, [-1, 2, -0.5], atol=0.06)


def test_beta_calibration_is_fitted_to_the_pairs() -> None:
    """The fitted beta calibration gives the probabilities of the true one, within 0.02."""
    rng = np.random.default_rng(2)
    beta = (0.3, 0.5, 2.0)
    logits = rng.normal(0, 2, 60_000)
    same = rng.random(60_000) < sigmoid(beta_calibrate(logits, beta))
    at = np.linspace(-3, 3, 7)
    found = fit_beta(logits, same, np.ones(60_000))
    np.testing.assert_allclose(
        sigmoid(beta_calibrate(at, found)), sigmoid(beta_calibrate(at, beta)), atol=0.02
    )


def test_the_regression_allows_for_a_beta_calibration_after_it() -> None:
    """The regression finds the coefficients also where their log-odds were calibrated after it."""
    rng = np.random.default_rng(1)
    beta = (-0.1, 0.7, 1.5)
    features = rng.normal(size=(40_000, 2))
    same = rng.random(40_000) < sigmoid(beta_calibrate(-1 + features @ [2, -0.5], beta))
    found = logistic(features, same, np.ones(40_000), beta=beta)
    np.testing.assert_allclose(found, [-1, 2, -0.5], atol=0.06)


@given(seeds, counts, st.sampled_from(["package", "nothing"]))
def test_who_looks_more_alike_is_never_less_likely_one_person(seed, count, known) -> None:
    """No data make a coefficient of likeness negative or anything infinite."""
    rng = np.random.default_rng(seed)
    data = examples(rng, count, truth=lambda f: rng.normal(0, 30, 2) @ (f[:, :2].T - 0.25))
    curve = start() if known == "package" else start(arrival=(0.0, 0.0), closed=(0.0,) * 10)
    fitted = refit(curve, data, prior_pairs=KNOWN_CURVE_PAIRS)
    assert fitted.arrival_coefficients[1] >= 0
    assert min(fitted.closing_coefficients[1:4]) >= 0
    assert np.isfinite([*fitted.arrival_coefficients, *fitted.closing_coefficients]).all()


@given(seeds, counts, st.sampled_from([NO_BETA, (-0.1, 1.0, 1.2)]))
def test_the_same_labels_again_move_the_curve_further_the_same_way(seed, count, beta) -> None:
    """The same pairs twice are explained at least as well as once, and once as at the start."""
    data = examples(np.random.default_rng(seed), count)
    twice = Examples(*(np.concatenate([getattr(data, name)] * 2) for name in Examples.__slots__))

    def loss(curve):
        return np.array([log_losses(chance, data.same).mean() for chance in predict(curve, data)])

    none = start(beta=beta)
    once, more = (refit(none, pairs, prior_pairs=10.0) for pairs in (data, twice))
    assert (loss(more) <= loss(once) + 1e-9).all()
    assert (loss(once) <= loss(none) + 1e-9).all()


@given(seeds, st.integers(1, 3))
def test_a_few_pairs_move_the_packages_curve_little(seed, count) -> None:
    """A few pairs move the log-odds by at most their number over the known curve's weight."""
    data = examples(np.random.default_rng(seed), count)
    fitted = refit(start(), data, prior_pairs=KNOWN_CURVE_PAIRS)
    at = data.similarity.mean()
    moved = (fitted.arrival_coefficients[0] + fitted.arrival_coefficients[1] * at) - (
        start().arrival_coefficients[0] + start().arrival_coefficients[1] * at
    )
    assert abs(moved) <= count / KNOWN_CURVE_PAIRS + 1e-6


def test_no_pairs_leave_the_curve_as_it_is() -> None:
    """A fit on no pairs returns a curve with the same id."""
    assert (
        refit(start(), examples(np.random.default_rng(1), 0), prior_pairs=10.0).calibration_id
        == start().calibration_id
    )


def test_many_pairs_overrule_the_packages_curve() -> None:
    """20,000 pairs bring the coefficients near the true ones, whatever the start was."""
    rng = np.random.default_rng(3)
    true = np.array([-3, 20, 14, 4, 1, -0.5, -0.3, -1.5, 0.5, 0.8])
    data = examples(rng, 20_000, truth=lambda f: true[0] + f @ true[1:])
    fitted = refit(start(), data, prior_pairs=KNOWN_CURVE_PAIRS)
    np.testing.assert_allclose(fitted.closing_coefficients, true, rtol=0.2, atol=0.2)
    error = calibration_error(predict(fitted, data)[1], data.same)
    assert error < 0.02 < calibration_error(predict(start(), data)[1], data.same)


def test_what_does_not_vary_among_a_users_pairs_keeps_its_weight() -> None:
    """Coefficients of features that do not vary stay as they were."""
    data = examples(np.random.default_rng(3), 300)
    data.features[:, [1, 3]] = 0.0, 1.0  # all in one video
    fitted = refit(start(), data, prior_pairs=10.0)
    known = start()
    assert (fitted.closing_coefficients[2], fitted.closing_coefficients[4]) == pytest.approx(
        (known.closing_coefficients[2], known.closing_coefficients[4])
    )


def test_figures_are_of_people_that_the_curve_was_not_fitted_on() -> None:
    """On random labels a curve beats chance on its own pairs and not when cross-validated."""
    rng = np.random.default_rng(5)
    data = examples(rng, 60, people=8)
    fair = cross_validated(start(), data, prior_pairs=0.1, rng=np.random.default_rng(1))[1]
    own = predict(refit(start(), data, prior_pairs=0.1), data)[1]
    assert log_losses(own, data.same).mean() < np.log(2) < log_losses(fair, data.same).mean()


@settings(max_examples=15)
@given(seeds)
def test_a_pairs_own_label_has_no_part_in_what_is_said_of_it(seed) -> None:
    """Turning a pair's label does not change its cross-validated probability."""
    data = examples(np.random.default_rng(seed), 40, people=30)
    # The fold of a person follows from who has a duplicate. 1 and 2 have another one, so theirs
    # stays.
    data.people[:3] = [[1, 2], [1, 1], [2, 2]]
    data.same[1:3] = True
    chances = []
    for label in (True, False):
        data.same[0] = label
        fair = cross_validated(start(), data, prior_pairs=1, rng=np.random.default_rng(1))
        chances.append([chance[0] for chance in fair])
    assert chances[0] == chances[1]


def test_weights_of_which_nothing_is_known_start_from_these_persons(tmp_path) -> None:
    """A curve made from a gallery's persons alone is complete, and can be saved and loaded."""
    vectors = np.random.default_rng(2).normal(size=(5, DIM))
    curve = neutral_curve([person(i, v, segments=[v, v + 0.1]) for i, v in enumerate(vectors)])
    assert curve.basis.shape == (0, DIM)
    assert 0 < curve.within_track_trace < 1
    path = tmp_path / "curve.json"
    path.write_bytes(curves_to_json({"a" * 64: curve}))
    assert load_curves(path)["a" * 64].calibration_id == curve.calibration_id
    assert neutral_curve([person(1, vectors[0])]).within_track_trace > 0, "without parts too"


def test_a_gallery_of_nobody_known_has_no_pairs() -> None:
    """A gallery without known identities gives no pairs."""
    assert KnownGallery({"v/1": person(1, np.ones(DIM))}, {}).similar_pairs(0.5)[0] == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), seeds)
def test_errors_are_shares_and_losses_finite(chances, seed) -> None:
    """Calibration errors lie within 0 and 1, and losses are finite, for any probabilities."""
    rng = np.random.default_rng(seed)
    chance = np.array(chances)
    same = rng.random(len(chances)) < 0.5
    assert 0 <= calibration_error(chance, same) <= 1
    assert 0 <= error_if_perfect(chance, rng) <= 1
    assert np.isfinite(log_losses(chance, same)).all()


def test_of_right_probabilities_the_swept_error_is_small_and_of_wrong_ones_large() -> None:
    """The swept error is below 0.03 for true probabilities, and 0.25 for halved ones."""
    rng = np.random.default_rng(1)
    chance = rng.random(4000)
    same = rng.random(4000) < chance
    assert swept_error(chance, same) < 0.03
    assert swept_error(chance / 2, same) == pytest.approx(0.25, abs=0.03)
    assert swept_error(np.array([0.3]), np.array([True])) == pytest.approx(0.7)


def test_the_diagram_is_xml_and_counts_its_pairs() -> None:
    """The diagram is XML with escaped titles, and its bars add up to the number of pairs."""
    rng = np.random.default_rng(1)
    chance = rng.random(100)
    text = diagram(
        [("a < b", [Panel("p & q", rng.random(100) < chance, (chance, chance**2))])],
        ("after", "before"),
    )
    texts = [
        element.text for element in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "a < b" in texts
    assert "p & q, 100 pairs" in texts
    assert text.count("<circle") == 20
    assert (
        sum(int(t) for t in texts[texts.index("share of one person") + 3 :] if t and t.isdigit())
        == 100
    )
