"""What a closing decides of the pairs of a gallery: by looks, motion, and all of them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persons import closed, person, walk

from models.linking.learned import all_coefficients
from streamproc.events import DuplicateCandidate, DuplicateGroup
from streamproc.gallery import Calibration, Curve, Gallery, apply
from streamproc.gallery.closing import MAX_KEPT
from streamproc.gallery.gallery import Writes
from streamproc.ids import hash_of

DIM = 32
WEIGHTS = "a" * 64
LINKING = next(iter(all_coefficients().values()))
CURVE = Curve(
    mean=np.zeros(DIM, np.float32),
    basis=np.eye(DIM, dtype=np.float32)[:2],
    basis_variances=np.full(2, 0.05, np.float32),
    rest_variance=0.03,
    within_track_trace=0.1,
    arrival_coefficients=(-12.0, 15.0),
    pair_coefficients=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0),
    closing_coefficients=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0, -0.8, 1.0, 1.0),
    beta_coefficients=(0.0, 1.0, 1.0),
    linking=LINKING,
)
CALIBRATION = Calibration({WEIGHTS: CURVE})


def feed(gallery, *events, calibration=CALIBRATION):
    """Apply and write the events one after the other; return what they announce."""
    said = []
    for event in events:
        result = apply(
            gallery,
            event,
            similarity_threshold=0.7,
            occurred_at="2026-11-24T12:00:00Z",
            calibration=calibration,
        )
        gallery.write(result.writes)
        said += result.events
    return said


def standing(gallery):
    """The judgement of each candidate that the gallery holds."""
    return {(a, b): entry.judgement for a, b, entry in gallery.candidates()}


def last_words(said):
    """What a subscriber who keeps the last word believes: probabilities of pairs, and groups."""
    pairs = {}
    groups = {}
    for event in said:
        if isinstance(event, DuplicateCandidate):
            keys = tuple(one.person_key for one in event.persons)
            pairs[keys] = None if event.state == "withdrawn" else event.probability
        elif isinstance(event, DuplicateGroup):
            groups[event.group_id] = event
    shown = {keys: chance for keys, chance in pairs.items() if chance is not None}
    standing_groups = {
        group_id: (tuple(event.person_keys), event.probability)
        for group_id, event in groups.items()
        if event.state != "withdrawn"
    }
    return shown, standing_groups


def people(rng, count):
    """Vectors (count, DIM) of different people, a little alike as OSNet's are."""
    return rng.normal(size=(count, DIM)) + 0.8 * rng.normal(size=DIM)


def scene(seed, videos=("v", "w", "x")):
    """The persons of some videos, in pieces, some with boxes; and each video's closing."""
    rng = np.random.default_rng(seed)
    looks = people(rng, 4)
    events = {}
    for video in videos:
        own = []
        for i in range(int(rng.integers(2, 9))):
            vector = looks[rng.integers(4)] + rng.uniform(0.1, 0.7) * rng.normal(size=DIM)
            beside = [int(j) for j in range(9) if j != i and rng.random() < 0.15]
            way = walk(int(rng.integers(500)), 30, float(rng.uniform(0, 1500)), 3)
            known = way if rng.random() < 0.7 else None
            made = person(i, vector, video_id=video, seen_with=beside, crops=8, trajectory=known)
            own.append(made)
        events[video] = own
    return events


def shuffled(events, draw):
    """All persons in any order, each video's closing somewhere after its own."""
    order = draw(st.permutations([one for own in events.values() for one in own]))
    for video, own in events.items():
        last = max(order.index(one) for one in own)
        end = closed([one.person_id for one in own], video_id=video)
        order.insert(draw(st.integers(last + 1, len(order))), end)
    return order


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.data())
def test_any_order_gives_the_same_candidates_and_groups(seed, data) -> None:
    """Whatever order persons and closings come in, the end is the same, and is announced."""
    events = scene(seed)
    ends = []
    for _ in range(2):
        gallery = Gallery("g")
        said = feed(gallery, *shuffled(events, data.draw))
        ends.append((standing(gallery), gallery.groups))
        pairs, groups = last_words(said)
        assert pairs == {pair: judged.probability for pair, judged in standing(gallery).items()}
        assert groups == {
            group_id: (group.person_keys, group.judgement.probability)
            for group_id, group in gallery.groups.items()
        }
    assert ends[0] == ends[1]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.data())
def test_groups_are_disjoint_hold_no_veto_and_are_named_by_their_smallest(seed, data) -> None:
    """Nobody is in two groups, and no two of a group were seen apart in the same frames."""
    gallery = Gallery("g")
    feed(gallery, *shuffled(scene(seed), data.draw))
    members = [key for group in gallery.groups.values() for key in group.person_keys]
    assert len(members) == len(set(members))
    for group_id, group in gallery.groups.items():
        assert list(group.person_keys) == sorted(group.person_keys)
        assert group_id == hash_of("g", group.person_keys[0])
        rows = [gallery.rows[key].tracklet for key in group.person_keys]
        for one in rows:
            beside = {(one.video_id, other) for other in one.seen_with}
            assert not beside & {(other.video_id, other.person_id) for other in rows}


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.data())
def test_a_later_run_leaves_no_ghost(seed, other_seed, data) -> None:
    """After a second run of a video all is as if that run had been the only one."""
    events = scene(seed)
    again = [
        one.model_copy(update={"run_id": "r2", "submitted_at": "2026-11-24T10:00:00Z"})
        for one in scene(other_seed)["v"]
    ]
    ids = [one.person_id for one in again]
    second = [*again, closed(ids, run="r2", minute=60)]
    gallery = Gallery("g")
    said = feed(gallery, *shuffled(events, data.draw), *second)
    fresh = Gallery("g")
    feed(fresh, *shuffled({video: events[video] for video in ("w", "x")}, data.draw), *second)
    assert standing(gallery) == standing(fresh)
    assert gallery.groups == fresh.groups
    pairs, groups = last_words(said)
    assert pairs == {pair: judged.probability for pair, judged in standing(gallery).items()}
    assert groups.keys() == gallery.groups.keys()


def reread(gallery):
    """The same gallery as a matcher reads it from its table: nothing is settled."""
    fresh = Gallery("g")
    for key, row in gallery.rows.items():
        fresh.write(Writes(rows={key: row}))
    for video_id, record in gallery.videos.items():
        fresh.write(Writes(videos={video_id: record}))
    for group_id, group in gallery.groups.items():
        fresh.write(Writes(groups={group_id: group}))
    return fresh


def some_again(seed, video, draw):
    """A later run of some of a video's persons, in any order, and its closing."""
    run = f"again-{seed}"
    changes = {"run_id": run, "submitted_at": f"2026-11-24T1{draw(st.integers(0, 9))}:30:00Z"}
    found = [one.model_copy(update=changes) for one in scene(seed, (video,))[video]]
    came = draw(st.lists(st.sampled_from(found), unique_by=lambda one: one.person_id))
    end = closed([one.person_id for one in came], video_id=video, run=run)
    outcome = draw(st.sampled_from(["done", "cancelled"]))
    changes |= {"outcome": outcome}
    return [*came, end.model_copy(update=changes)]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.data())
def test_a_closing_that_knows_what_is_settled_gives_what_one_from_scratch_gives(seed, data) -> None:
    """What a closing does not look at again would come to the same."""
    events = shuffled(scene(seed, ("v", "w")), data.draw)
    later = shuffled(scene(seed + 1, ("y", "z")), data.draw)
    for number in range(data.draw(st.integers(0, 2))):
        video = data.draw(st.sampled_from(["v", "w"]))
        *came, end = some_again(seed + number, video, data.draw)
        events += came  # and other videos close before this run does
        later.insert(data.draw(st.integers(0, len(later))), end)
    events += later
    gallery = Gallery("g")
    for event in events:
        words = {"similarity_threshold": 0.7, "occurred_at": "2026-11-24T12:00:00Z"}
        result = apply(gallery, event, **words, calibration=CALIBRATION)
        if event.kind == "video-closed":
            again = apply(reread(gallery), event, **words, calibration=CALIBRATION)
            assert result.events == again.events
            assert result.writes == again.writes
        gallery.write(result.writes)


def test_a_closing_without_persons_leaves_a_gallery_as_it_is() -> None:
    """A video in which nobody was seen closes beside others, and says only that it is done."""
    gallery = Gallery("g")
    events = three_pieces()
    feed(gallery, *events, closed([one.person_id for one in events]))
    for known in (gallery, reread(gallery)):
        before = (standing(known), known.groups)
        (done,) = feed(known, closed([], video_id="empty"))
        assert (done.state, done.candidate_count) == ("done", 0)
        assert (standing(known), known.groups) == before


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.data())
def test_pairs_of_one_video_are_final_when_it_closes(seed, data) -> None:
    """Other videos change neither their evidence nor how likely they are."""
    events = scene(seed)
    gallery = Gallery("g")
    own = {video: events[video] for video in ("v",)}
    feed(gallery, *shuffled(own, data.draw))
    before = pairs_of(gallery, "v")
    feed(gallery, *shuffled({video: events[video] for video in ("w", "x")}, data.draw))
    assert pairs_of(gallery, "v") == before


def pairs_of(gallery, video):
    """What is kept of the pairs of one video: evidence and judgement."""
    found = {}
    for key in gallery.keys_of_video(video):
        for other, entry in gallery.candidates_of(key, with_suppressed=True).items():
            if other.startswith(f"{video}/"):
                found[key, other] = (entry.evidence, entry.judgement)
    return found


def three_pieces(**changes):
    """One person who walks on in three pieces, and somebody else who looks a little like them."""
    looks = people(np.random.default_rng(3), 2)
    near = looks[0] + 0.9 * looks[1]
    pieces = [
        person(1, looks[0], crops=8, trajectory=walk(0, 40, 100, 5), **changes),
        person(2, looks[0] + 0.2 * looks[1], crops=8, trajectory=walk(50, 40, 350, 5), **changes),
        person(3, looks[0] - 0.2 * looks[1], crops=8, trajectory=walk(100, 40, 600, 5), **changes),
        person(4, near, crops=8, trajectory=walk(45, 40, 1500, -5), seen_with=[2], **changes),
    ]
    others = people(np.random.default_rng(4), 20)
    crowd = [
        person(10 + i, vector, crops=8, trajectory=walk(0, 60, 60.0 * i, 0), **changes)
        for i, vector in enumerate(others)
    ]
    return [*pieces, *crowd]


def test_pieces_that_go_on_where_another_ends_are_one_group() -> None:
    """Three pieces of a walk are proposed as one person, and their pairs name the group."""
    events = three_pieces()
    gallery = Gallery("g")
    said = feed(gallery, *events, closed([one.person_id for one in events]))
    (group,) = (event for event in said if isinstance(event, DuplicateGroup))
    assert (group.state, group.person_keys) == ("proposed", ["v/1", "v/2", "v/3"])
    named = {
        tuple(one.person_id for one in event.persons): event.group_id
        for event in said
        if isinstance(event, DuplicateCandidate) and event.group_id is not None
    }
    assert named == dict.fromkeys([(1, 2), (1, 3), (2, 3)], group.group_id)


def test_motion_tells_two_who_look_alike_apart() -> None:
    """The piece that begins where another ends is likelier the same than one far away."""
    looks = people(np.random.default_rng(5), 12)
    log_odds = []
    for x in (350.0, 1700.0):
        events = [
            person(1, looks[0], crops=8, trajectory=walk(0, 40, 100, 5)),
            person(2, looks[0] + 0.55 * looks[1], crops=8, trajectory=walk(50, 40, x, 5)),
        ]
        events += [person(10 + i, v, crops=8) for i, v in enumerate(looks[2:])]
        gallery = Gallery("g")
        feed(gallery, *events, closed([one.person_id for one in events]))
        pair = gallery.candidates_of("v/1", with_suppressed=True)["v/2"]
        log_odds.append(pair.evidence.first)
    assert log_odds[0] > log_odds[1] + 1


def test_pairs_wait_until_both_videos_are_closed() -> None:
    """A pair of two videos keeps its first estimate while one of them goes on."""
    looks = people(np.random.default_rng(6), 8)
    of_video = {
        video: [person(i, vector, video_id=video, crops=8) for i, vector in enumerate(looks)]
        for video in ("v", "w")
    }
    gallery = Gallery("g")
    feed(gallery, *of_video["v"], *of_video["w"], closed(range(8), video_id="v"))
    pair = gallery.candidates_of("v/0", with_suppressed=True)["w/0"]
    assert pair.evidence is None
    assert pair.judgement == CALIBRATION.at_arrival(WEIGHTS, pair.similarity)
    feed(gallery, closed(range(8), video_id="w"))
    assert gallery.candidates_of("v/0", with_suppressed=True)["w/0"].evidence is not None


def test_rows_of_an_older_version_are_judged_anew_by_looks_alone() -> None:
    """Pairs that another calibration judged are judged again at the next closing."""
    looks = people(np.random.default_rng(7), 6)
    old = [person(i, looks[i // 2], crops=8) for i in range(8)]
    before = Calibration({WEIGHTS: replace(CURVE, linking=None)})
    gallery = Gallery("g")
    feed(gallery, *old, closed(range(8)), calibration=before)
    assert gallery.groups == {}
    new = [person(0, looks[5], video_id="w", crops=8), closed([0], video_id="w")]
    feed(gallery, *new)
    assert standing(gallery)
    assert {judged.calibration_id for judged in standing(gallery).values()} == {
        CURVE.calibration_id
    }
    fresh = Gallery("g")
    feed(fresh, *old, closed(range(8)), *new)
    assert (standing(gallery), gallery.groups) == (standing(fresh), fresh.groups)


def test_a_tracklet_keeps_its_likeliest_pairs_and_the_others_are_counted() -> None:
    """Of 60 who look alike a row keeps 20 pairs of its own; what is left out is counted."""
    rng = np.random.default_rng(8)
    looks = people(rng, 1)[0]
    events = [person(i, looks + 0.3 * rng.normal(size=DIM), crops=8) for i in range(60)]
    gallery = Gallery("g")
    feed(gallery, *events)
    result = apply(
        gallery,
        closed(range(60)),
        similarity_threshold=0.7,
        occurred_at="2026-11-24T12:00:00Z",
        calibration=CALIBRATION,
    )
    gallery.write(result.writes)
    kept = {
        frozenset((key, other)) for key, row in gallery.rows.items() for other in row.candidates
    }
    assert len(kept) + result.not_kept == 60 * 59 // 2
    assert 60 * MAX_KEPT // 2 <= len(kept) <= 60 * MAX_KEPT
    pairs, _ = last_words(result.events)
    assert pairs.keys() <= {tuple(sorted(pair)) for pair in kept}


@pytest.mark.parametrize("min_probability", [0.0, 0.2])
def test_what_a_pair_needs_is_lower_within_a_group(min_probability) -> None:
    """Pairs with boxes need .6 in one group and .7 elsewhere, others .2; 0 shows all."""
    calibration = replace(CALIBRATION, min_probability=min_probability)
    grouped = np.array([True, False, True, False])
    moves = np.array([True, True, False, False])
    needed = calibration.least_probabilities(grouped, moves).tolist()
    assert needed == ([0, 0, 0, 0] if not min_probability else [0.6, 0.7, 0.2, 0.2])


def test_the_packages_curves_have_the_coefficients_that_were_fitted() -> None:
    """What `models/linking` learned on all videos is what the package carries."""
    from streamproc.gallery import load_curves
    from streamproc.networks.manifest import package_file

    curves = load_curves(package_file("calibration.json"))
    fitted = all_coefficients()
    assert curves.keys() == fitted.keys()
    for sha256, curve in curves.items():
        assert curve.linking.to_json() == fitted[sha256].to_json()
