"""The matcher's table: entries and partitions, and the end of a gallery."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st
from persons import closed, person, unit_vector

from streamproc.events import GalleryExpired, PersonEmbedding, parse_embedded, timestamp_of
from streamproc.gallery import (
    UNCALIBRATED,
    Calibration,
    Candidate,
    Curve,
    Evidence,
    Gallery,
    Group,
    Judgement,
    Row,
    VideoRecord,
    Writes,
    apply,
)
from streamproc.services.matcher.table import (
    EntryKey,
    Galleries,
    OwnedGallery,
    decide,
    entries_of,
    partition_of,
)

TIME = "2026-11-24T12:00:00Z"
ids = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
keys = st.builds(EntryKey, ids, st.sampled_from(["person", "video", "group"]), ids)


@given(keys, keys)
def test_entry_keys_come_back_and_never_collide(a, b):
    """A key comes back from its bytes, and two keys have equal bytes only if they are equal."""
    assert EntryKey.from_bytes(a.to_bytes()) == a
    assert (a.to_bytes() == b.to_bytes()) == (a == b)


@given(st.binary(min_size=1, max_size=40).map(lambda b: b.hex()), st.integers(1, 50))
def test_a_gallery_lives_where_kafkas_own_partitioner_puts_its_key(gallery_id, partitions):
    """A gallery's partition is the one that aiokafka's default partitioner chooses."""
    everywhere = list(range(partitions))
    assert partition_of(gallery_id, partitions) == DefaultPartitioner()(
        gallery_id.encode(), everywhere, everywhere
    )


CALIBRATION = Calibration(
    {
        "a" * 64: Curve(
            mean=np.zeros(8, np.float32),
            basis=np.eye(8, dtype=np.float32)[:2],
            basis_variances=np.full(2, 0.2, np.float32),
            rest_variance=0.1,
            within_track_trace=0.1,
            arrival_coefficients=(-8.0, 10.0),
            pair_coefficients=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0),
            closing_coefficients=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0, -0.8, 1.0, 1.0),
            beta_coefficients=(0.1, 1.0, 1.2),
        )
    }
)
judgements = st.builds(Judgement, st.floats(0, 1), st.sampled_from(["likely", "uncertain"]), ids)
states = st.sampled_from(["proposed", "updated", "suppressed"])
groups = st.builds(Group, st.lists(ids, min_size=2, max_size=5).map(tuple), judgements)
evidence = st.none() | st.builds(Evidence, st.floats(-40, 40), st.floats(-40, 40))
neighbours = st.dictionaries(
    ids,
    st.builds(Candidate, st.floats(-1, 1), ids, states)
    | st.builds(Candidate, st.floats(-1, 1), ids, states, judgements, evidence),
    max_size=20,
)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=8).filter(
        lambda v: np.linalg.norm(v) > 0.1
    ),
    neighbours,
    st.integers(0, 2**50),
)
def test_a_row_comes_back_from_its_entry_bit_for_bit(vector, near, at_ms):
    """A row, its event's bytes and its time come back from the table entry unchanged."""
    event = person(1, vector, seen_with=[2, 3])
    raw = event.to_json()
    event = parse_embedded(raw)
    [(key, value)] = entries_of(
        "g", Writes({event.person_key: Row(event, near)}), at_ms=at_ms, event=event, raw=raw
    )
    assert raw in value
    galleries = Galleries(max_persons=10)
    galleries.load(3, key, value)
    owned = galleries.get("g")
    assert owned.gallery.rows == {"v/1": Row(event, near)}
    assert (owned.partition, owned.last_event_ms) == (3, at_ms)


def test_a_row_of_another_event_is_written_from_that_event():
    """A row of another person than the event's is written with that person's own JSON."""
    other = person(1, [1, 0])
    [(_, value)] = entries_of(
        "g", Writes({"v/1": Row(other)}), at_ms=1, event=person(2, [0, 1]), raw=b"{}"
    )
    assert other.to_json() in value


@given(st.tuples(st.floats(0, 1e11), ids), st.booleans(), st.integers(0, 10**6), st.floats(0, 1e11))
def test_a_record_comes_back_from_its_entry(order, is_closed, count, started):
    """A video's record comes back from its table entry unchanged."""
    record = VideoRecord(order, is_closed, count, started)
    [(key, value)] = entries_of("g", Writes(videos={"v": record}), at_ms=5, event=None, raw=b"")
    galleries = Galleries(max_persons=10)
    galleries.load(0, key, value)
    assert galleries.get("g").gallery.videos == {"v": record}


@given(groups)
def test_a_group_comes_back_from_its_entry(group):
    """A group comes back from its table entry unchanged, and a removal takes it away."""
    [(key, value)] = entries_of("g", Writes(groups={"one": group}), at_ms=5, event=None, raw=b"")
    galleries = Galleries(max_persons=10)
    galleries.load(0, key, value)
    gallery = galleries.get("g").gallery
    assert gallery.groups == {"one": group}
    assert gallery.group_ids == dict.fromkeys(group.person_keys, "one")
    gallery.write(Writes(groups={"one": None}))
    assert (gallery.groups, gallery.group_ids) == ({}, {})


def test_removals_have_no_value_and_rows_go_before_records():
    """A removal is an entry without a value, and rows come before records."""
    writes = Writes({"v/1": None}, {"v": VideoRecord((1.0, "r"), closed=True)})
    entries = entries_of("g", writes, at_ms=1, event=None, raw=b"")
    assert [EntryKey.from_bytes(key).kind for key, _ in entries] == ["person", "video"]
    assert entries[0][1] is None


@given(st.data())
def test_a_gallery_read_from_the_table_goes_on_as_the_one_that_wrote_it(data):
    """A gallery loaded from the table answers every further event like the one that wrote it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    centres = rng.normal(size=(3, 8))
    events = []
    for run in range(2):
        ids = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=8, unique=True))
        for i in ids:
            vector = centres[rng.integers(3)] + rng.normal(0, 0.4, 8)
            parts = [unit_vector(vector + rng.normal(0, 0.1, 8)) for _ in range(3)]
            events.append(person(i, vector, run=f"r{run}", minute=run, segments=parts))
        events.append(closed(ids, run=f"r{run}", minute=run))
    calibration = CALIBRATION if data.draw(st.booleans()) else UNCALIBRATED
    cut = data.draw(st.integers(0, len(events)))
    table: dict[bytes, bytes | None] = {}
    gallery = Gallery("g")
    for event in events[:cut]:
        outcome = apply(
            gallery, event, similarity_threshold=0.7, occurred_at=TIME, calibration=calibration
        )
        gallery.write(outcome.writes)
        own = event if isinstance(event, PersonEmbedding) else None
        table |= dict(entries_of("g", outcome.writes, at_ms=1, event=own, raw=event.to_json()))
    galleries = Galleries(max_persons=100)
    for key, value in table.items():
        if value is not None:
            galleries.load(0, key, value)
    other = galleries.open("g", 0).gallery
    for event in events[cut:]:
        both = [
            apply(g, event, similarity_threshold=0.7, occurred_at=TIME, calibration=calibration)
            for g in (gallery, other)
        ]
        assert both[0].events == both[1].events
        gallery.write(both[0].writes)
        other.write(both[1].writes)
    assert gallery.rows == other.rows
    assert gallery.videos == other.videos


def gallery_with(*events, last_event_ms=1000) -> OwnedGallery:
    """A gallery of partition 0 that has taken these events."""
    owned = OwnedGallery(Gallery("g"), 0, last_event_ms)
    for event in events:
        owned.gallery.write(
            apply(owned.gallery, event, similarity_threshold=0.7, occurred_at=TIME).writes
        )
    return owned


def end_of(owned, event):
    """The outcome of one event on an open gallery."""
    return decide(owned, event, similarity_threshold=0.7, occurred_at=TIME)


def test_an_expired_gallery_loses_all_its_rows_and_records_and_says_nothing():
    """Expiry removes all rows and records silently, and the gallery can begin again."""
    owned = gallery_with(person(1, [1, 0]), person(2, [1, 0.1]), closed([1, 2]))
    outcome = end_of(
        owned, GalleryExpired.make(gallery_id="g", last_event_at=timestamp_of(owned.last_event_ms))
    )
    assert not outcome.events
    owned.gallery.write(outcome.writes)
    assert (owned.gallery.rows, owned.gallery.videos) == ({}, {})
    galleries = Galleries(max_persons=1)
    galleries.drop_if_empty(galleries.open("g", 0))
    assert len(galleries) == 0
    assert end_of(owned, person(1, [1, 0])).writes.rows.keys() == {"v/1"}


def test_a_gallery_heard_of_meanwhile_does_not_expire():
    """An expiry that is older than the last event removes nothing."""
    owned = gallery_with(person(1, [1, 0]), last_event_ms=1001)
    assert not end_of(
        owned, GalleryExpired.make(gallery_id="g", last_event_at=timestamp_of(1000))
    ).writes.rows


def test_a_closing_that_comes_again_starts_the_gallerys_time_again():
    """A repeated closing writes its record again and announces done again."""
    owned = gallery_with(person(1, [1, 0]), closed([1]))
    outcome = end_of(owned, closed([1]))
    assert outcome.writes.videos == {"v": owned.gallery.videos["v"]}
    assert [event.state for event in outcome.events] == ["done"]


def test_the_matcher_takes_numbers_that_would_overflow_for_bad_events():
    """Numbers that would overflow in `apply` are refused by the event's schema."""
    template = person(1, [1, 0]).model_dump(mode="json")
    for change in (
        {"person_id": 10**30, "person_key": f"v/{10**30}"},
        {"first_seen_seconds": 1e308},
    ):
        with pytest.raises(ValueError, match="less than or equal"):
            PersonEmbedding(**(template | change))
