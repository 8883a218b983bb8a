"""The matcher's pure parts: table entries, partitions, a gallery's end; its HTTP routes, its folders, its TLS."""

from __future__ import annotations

import io
import os
from urllib.parse import quote

import faust
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st
from persons import closed, person, unit_vector

from streamproc.events import GalleryExpired, PersonEmbedding, parse_embedded
from streamproc.gallery import (
    UNCALIBRATED,
    Calibration,
    Curve,
    Gallery,
    Judgement,
    Neighbour,
    Row,
    VideoRecord,
    Writes,
    apply,
)
from streamproc.services.matcher import http as gallery_api
from streamproc.services.matcher.faust_table import credentials_of, instance_folder
from streamproc.services.matcher.http import NPY, GalleryApi
from streamproc.services.matcher.table import (
    EntryKey,
    Galleries,
    Held,
    decide,
    entries_of,
    partition_of,
    time_of,
)
from streamproc.settings import load_settings

TIME = "2026-11-24T12:00:00Z"
ids = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
keys = st.builds(EntryKey, ids, st.sampled_from(["person", "video"]), ids)


@given(keys, keys)
def test_entry_keys_come_back_and_never_collide(a, b):
    assert EntryKey.from_bytes(a.to_bytes()) == a
    assert (a.to_bytes() == b.to_bytes()) == (a == b)


@given(st.binary(min_size=1, max_size=40).map(lambda b: b.hex()), st.integers(1, 50))
def test_a_gallery_lives_where_kafkas_own_partitioner_puts_its_key(gallery_id, partitions):
    everywhere = list(range(partitions))
    assert partition_of(gallery_id, partitions) == DefaultPartitioner()(
        gallery_id.encode(), everywhere, everywhere
    )


CALIBRATION = Calibration(
    {
        "a" * 64: Curve(
            mean=np.zeros(8, np.float32),
            basis=np.eye(8, dtype=np.float32)[:2],
            spread=np.full(2, 0.2, np.float32),
            rest=0.1,
            part_trace=0.1,
            arrival=(-8.0, 10.0),
            alone=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0),
            closed=(-1.0, 5.0, 5.0, 1.0, 0.0, -0.5, -1.0, -0.8, 1.0, 1.0),
            bent=(0.1, 1.0, 1.2),
        )
    }
)
judgements = st.none() | st.builds(
    Judgement, st.floats(0, 1), st.sampled_from(["likely", "uncertain"]), ids
)
neighbours = st.dictionaries(
    ids,
    st.builds(
        Neighbour,
        st.floats(-1, 1),
        ids,
        st.sampled_from(["proposed", "updated", "held"]),
        judgements,
    ),
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
    event = person(1, vector, seen_with=[2, 3])
    raw = event.to_json()
    event = parse_embedded(raw)
    [(key, value)] = entries_of(
        "g", Writes({event.person_key: Row(event, near)}), at_ms=at_ms, event=event, raw=raw
    )
    assert raw in value
    galleries = Galleries(max_persons=10)
    galleries.load(3, key, value)
    held = galleries.get("g")
    assert held.gallery.rows == {"v/1": Row(event, near)}
    assert (held.partition, held.heard_ms) == (3, at_ms)


def test_a_row_of_another_event_is_written_from_that_event():
    other = person(1, [1, 0])
    [(_, value)] = entries_of(
        "g", Writes({"v/1": Row(other)}), at_ms=1, event=person(2, [0, 1]), raw=b"{}"
    )
    assert other.to_json() in value


@given(st.tuples(st.floats(0, 1e11), ids), st.booleans(), st.integers(0, 10**6))
def test_a_record_comes_back_from_its_entry(order, is_closed, count):
    record = VideoRecord(order, is_closed, count)
    [(key, value)] = entries_of("g", Writes(videos={"v": record}), at_ms=5, event=None, raw=b"")
    galleries = Galleries(max_persons=10)
    galleries.load(0, key, value)
    assert galleries.get("g").gallery.videos == {"v": record}


def test_removals_have_no_value_and_rows_go_before_records():
    writes = Writes({"v/1": None}, {"v": VideoRecord((1.0, "r"), closed=True)})
    entries = entries_of("g", writes, at_ms=1, event=None, raw=b"")
    assert [EntryKey.from_bytes(key).kind for key, _ in entries] == ["person", "video"]
    assert entries[0][1] is None


@given(st.data())
def test_a_gallery_read_from_the_table_goes_on_as_the_one_that_wrote_it(data):
    """Whatever the events were, and wherever between them the process was another."""
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
    gallery, said = Gallery("g"), []
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
        said += both[0].events
    assert gallery.rows == other.rows
    assert gallery.videos == other.videos


def held_with(*events, heard_ms=1000) -> Held:
    held = Held(Gallery("g"), 0, heard_ms)
    for event in events:
        held.gallery.write(
            apply(held.gallery, event, similarity_threshold=0.7, occurred_at=TIME).writes
        )
    return held


def end_of(held, event):
    return decide(held, event, similarity_threshold=0.7, occurred_at=TIME)


def test_an_expired_gallery_loses_all_its_rows_and_records_and_says_nothing():
    held = held_with(person(1, [1, 0]), person(2, [1, 0.1]), closed([1, 2]))
    outcome = end_of(
        held, GalleryExpired.make(gallery_id="g", last_event_at=time_of(held.heard_ms))
    )
    assert not outcome.events
    held.gallery.write(outcome.writes)
    assert (held.gallery.rows, held.gallery.videos) == ({}, {})
    galleries = Galleries(max_persons=1)
    galleries.drop_if_empty(galleries.open("g", 0))
    assert len(galleries) == 0
    assert end_of(held, person(1, [1, 0])).writes.rows.keys() == {"v/1"}


def test_a_gallery_heard_of_meanwhile_does_not_expire():
    held = held_with(person(1, [1, 0]), heard_ms=1001)
    assert not end_of(
        held, GalleryExpired.make(gallery_id="g", last_event_at=time_of(1000))
    ).writes.rows


def test_a_closing_that_comes_again_starts_the_gallerys_time_again():
    held = held_with(person(1, [1, 0]), closed([1]))
    outcome = end_of(held, closed([1]))
    assert outcome.writes.videos == {"v": held.gallery.videos["v"]}
    assert [event.state for event in outcome.events] == ["done"]


def test_the_matcher_takes_numbers_that_would_overflow_for_bad_events():
    """What `apply` could stumble over is refused by the schema, where it is a bad event and no fault of the machine."""
    template = person(1, [1, 0]).model_dump(mode="json")
    for change in (
        {"person_id": 10**30, "person_key": f"v/{10**30}"},
        {"first_seen_seconds": 1e308},
    ):
        with pytest.raises(ValueError, match="less than or equal"):
            PersonEmbedding(**(template | change))


class Source:
    """A matcher of one gallery, `g`, in partition 0; partition 1 is another's, partition 2 nobody's."""

    loaded = (0,)

    def __init__(self, count):
        self.galleries = Galleries(max_persons=1000)
        rng = np.random.default_rng(3)
        held = self.galleries.open("g", 0)
        weights = ["a" * 64, "b" * 64]
        for i in range(count):
            event = person(i, unit_vector(rng.normal(size=4)), weights=weights[i % 5 == 0])
            held.gallery.write(
                apply(held.gallery, event, similarity_threshold=0.7, occurred_at=TIME).writes
            )

    def partition_of(self, gallery_id):
        return {"moved": 1, "moving": 2}.get(gallery_id, 0)

    def owner_of(self, partition):
        return "http://other:8082/" if partition == 1 else None


async def asked(source, path, **headers):
    app = web.Application()
    app.add_routes(GalleryApi(source).routes())
    async with (
        TestClient(TestServer(app)) as client,
        client.get(path, headers=headers, allow_redirects=False) as reply,
    ):
        return reply.status, reply.headers, await reply.read()


async def test_the_matrix_is_the_same_in_npy_in_blocks_and_in_the_core(monkeypatch):
    source = Source(23)
    monkeypatch.setattr(gallery_api, "_BLOCK_NUMBERS", 50)
    status, headers, body = await asked(source, "/galleries/g/similarity", Accept=NPY)
    gallery = source.galleries.get("g").gallery
    assert (status, headers["Content-Type"]) == (200, NPY)
    matrix = np.load(io.BytesIO(body))
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, gallery.matrix(sorted(gallery.rows)), atol=1e-6)
    assert np.isnan(matrix).any()


async def test_who_asks_for_what_is_not_here_is_told_why(monkeypatch):
    source = Source(5)
    assert (await asked(source, "/galleries/unknown/similarity"))[0] == 404
    status, headers, _ = await asked(
        source, f"/galleries/{quote('moved', safe='')}/similarity?matrix=no"
    )
    assert (status, headers["Location"]) == (
        307,
        "http://other:8082/galleries/moved/similarity?matrix=no",
    )
    status, headers, _ = await asked(source, "/galleries/moving/similarity")
    assert (status, headers["Retry-After"]) == (503, "2")
    monkeypatch.setattr(gallery_api, "MAX_JSON_PERSONS", 4)
    status, _, body = await asked(source, "/galleries/g/similarity")
    assert status == 413
    assert NPY.encode() in body
    assert (await asked(source, "/galleries/g/similarity?matrix=no"))[0] == 200


def test_matchers_on_one_machine_have_folders_of_their_own_and_find_them_again(tmp_path):
    settings = load_settings({"matcher.state_folder": str(tmp_path / "state")}, config_file=None)
    with instance_folder(settings) as first, instance_folder(settings) as second:
        assert first != second
    with instance_folder(settings) as again:
        assert again == first


def test_a_local_copy_that_was_long_not_written_is_read_anew(tmp_path):
    settings = load_settings({"matcher.state_folder": str(tmp_path)}, config_file=None)
    with instance_folder(settings) as folder:
        stores = [folder / "v1" / "tables" / f"rows-{i}.db" for i in range(2)]
        for store in stores:
            store.mkdir(parents=True)
            (store / "000004.log").write_bytes(b"x")
        os.utime(stores[0] / "000004.log", (1, 1))
    with instance_folder(settings):
        assert [store.exists() for store in stores] == [False, True]


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_gets_the_same_credentials_as_the_other_clients(protocol):
    flags = {
        "kafka.security_protocol": protocol,
        "kafka.sasl_mechanism": "SCRAM-SHA-512",
        "kafka.sasl_username": "u",
        "kafka.sasl_password": "p",
    }
    made = credentials_of(load_settings(flags, config_file=None))
    if protocol == "PLAINTEXT":
        assert made is None
        return
    assert made.protocol.value == protocol
    if protocol.startswith("SASL"):
        assert isinstance(made, faust.SASLCredentials)
        assert (made.username, made.password, made.mechanism.value) == ("u", "p", "SCRAM-SHA-512")
