"""The matcher's HTTP routes: a gallery's matrix, and answers where it is not here."""

from __future__ import annotations

import asyncio
import io
import socket
from urllib.parse import quote

import numpy as np
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from persons import person, unit_vector

from streamproc.decisions import PairDecision
from streamproc.events import DuplicateCandidate, PersonIdentity
from streamproc.gallery import apply
from streamproc.kafka.client import fetch_identities
from streamproc.services.hosts import check_host, is_own_host
from streamproc.services.matcher import http
from streamproc.services.matcher.http import NPY, GalleryApi
from streamproc.services.matcher.table import Galleries

TIME = "2026-11-24T12:00:00Z"


class FakeMatcher:
    """A matcher of one gallery, `g`, in partition 0.

    Partition 1 is another matcher's, partition 2 nobody's.
    """

    loaded = (0,)

    def __init__(self, count):
        self.galleries = Galleries(max_persons=1000)
        rng = np.random.default_rng(3)
        owned = self.galleries.open("g", 0)
        weights = ["a" * 64, "b" * 64]
        for i in range(count):
            event = person(i, unit_vector(rng.normal(size=4)), weights=weights[i % 5 == 0])
            owned.gallery.write(
                apply(owned.gallery, event, similarity_threshold=0.7, occurred_at=TIME).writes
            )

    def partition_of(self, gallery_id):
        """Partition 1 for the gallery `moved`, 2 for `moving`, else 0."""
        return {"moved": 1, "moving": 2}.get(gallery_id, 0)

    def owner_of(self, partition):
        """The address of who owns a partition, if anybody does."""
        return "http://other:8082/" if partition == 1 else None

    def others(self):
        """The addresses of the other matchers."""
        return ["http://other:8082/"]

    similarity_threshold = 0.7


async def request(matcher, path, **headers):
    """The status, headers and body of one request to the gallery routes."""
    app = web.Application()
    app.add_routes(GalleryApi(matcher).routes())
    async with (
        TestClient(TestServer(app)) as client,
        client.get(path, headers=headers, allow_redirects=False) as reply,
    ):
        return reply.status, reply.headers, await reply.read()


async def test_the_matrix_is_the_same_in_npy_in_blocks_and_in_the_core(monkeypatch):
    """The matrix served in blocks as npy is the gallery's own, NaN included."""
    matcher = FakeMatcher(23)
    monkeypatch.setattr(http, "_BLOCK_NUMBERS", 50)
    status, headers, body = await request(matcher, "/galleries/g/similarity", Accept=NPY)
    gallery = matcher.galleries.get("g").gallery
    assert (status, headers["Content-Type"]) == (200, NPY)
    matrix = np.load(io.BytesIO(body))
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, gallery.matrix(sorted(gallery.rows)), atol=1e-6)
    assert np.isnan(matrix).any()


async def listed(matcher, name, query=""):
    """What a list of the gallery `g` says."""
    status, _, body = await request(matcher, f"/galleries/g/{name}{query}")
    assert status == 200
    return orjson.loads(body)


async def test_what_a_gallery_is_now_has_the_form_of_the_events():
    """Each list parses as its topic's events, and what was called different is left out."""
    matcher = FakeMatcher(12)
    owned = matcher.galleries.get("g")
    gallery = owned.gallery
    (a, b, _), (c, d, _) = list(gallery.candidates())[:2]
    at = {"gallery_id": "g", "decided_at": TIME}
    no = PairDecision.make(**at, person_keys=(a, b), verdict="different")
    yes = PairDecision.make(**at, person_keys=(c, d), verdict="same")
    for decision in (no, yes):
        gallery.write(apply(gallery, decision, similarity_threshold=0.7, occurred_at=TIME).writes)
    count = sum(1 for _ in gallery.candidates())
    candidates = await listed(matcher, "candidates")
    assert candidates["count"] == len(candidates["candidates"]) == count - 1
    events = [DuplicateCandidate.model_validate(one) for one in candidates["candidates"]]
    assert {event.state for event in events} <= {"proposed", "updated"}
    with_decided = (await listed(matcher, "candidates", "?decided=yes"))["candidates"]
    [out] = [one for one in with_decided if one["state"] == "withdrawn"]
    assert out["reason"] == "decided"
    assert sorted(one["person_key"] for one in out["persons"]) == sorted((a, b))
    shown = [tuple(one["person_key"] for one in event["persons"]) for event in with_decided]
    assert sorted(shown) == [(a, b) for a, b, _ in gallery.candidates()]
    one = await listed(matcher, "candidates", "?limit=1")
    assert (one["count"], one["candidates"][0]["candidate_id"]) == (
        count - 1,
        candidates["candidates"][0]["candidate_id"],
    )
    [identity] = (await listed(matcher, "identities"))["identities"]
    assert PersonIdentity.model_validate(identity).person_keys == sorted((c, d))
    decisions = await listed(matcher, "decisions")
    assert {one["decision_id"] for one in decisions["decisions"]} == {
        no.decision_id,
        yes.decision_id,
    }
    assert decisions["not_carried_over"] == []
    assert (await listed(matcher, "groups"))["groups"] == []
    persons = await listed(matcher, "persons")
    assert [one["person_key"] for one in persons["persons"]] == sorted(gallery.rows)
    assert persons["videos"] == [{"video_id": "v", "run_id": "r1", "closed": False}]
    assert "vector" not in persons["persons"][0]


@pytest.mark.parametrize(
    "name", ["candidates", "groups", "identities", "decisions", "persons", "similarity"]
)
async def test_each_list_of_another_matcher_is_asked_for_there(name):
    """The query goes along."""
    status, headers, _ = await request(FakeMatcher(2), f"/galleries/moved/{name}?decided=yes")
    assert status == 307
    assert headers["Location"] == f"http://other:8082/galleries/moved/{name}?decided=yes"
    assert (await request(FakeMatcher(2), f"/galleries/unknown/{name}"))[0] == 404


async def test_who_asks_for_what_is_not_here_is_told_why(monkeypatch):
    """An unknown, a moved, a moving and a too large gallery get 404, 307, 503 and 413."""
    matcher = FakeMatcher(5)
    assert (await request(matcher, "/galleries/unknown/similarity"))[0] == 404
    status, headers, _ = await request(
        matcher, f"/galleries/{quote('moved', safe='')}/similarity?matrix=no"
    )
    assert (status, headers["Location"]) == (
        307,
        "http://other:8082/galleries/moved/similarity?matrix=no",
    )
    status, headers, _ = await request(matcher, "/galleries/moving/similarity")
    assert (status, headers["Retry-After"]) == (503, "2")
    monkeypatch.setattr(http, "MAX_JSON_PERSONS", 4)
    status, _, body = await request(matcher, "/galleries/g/similarity")
    assert status == 413
    assert NPY.encode() in body
    assert (await request(matcher, "/galleries/g/similarity?matrix=no"))[0] == 200


async def test_who_does_not_read_is_left_and_waits_hold_nothing(monkeypatch):
    """Clients that never read lose their slots, further ones are told to come again."""
    monkeypatch.setattr(http, "_CLIENT_SECONDS", 0.2)
    monkeypatch.setattr(http, "_LEAST_BYTES_A_SECOND", 1 << 40)
    matcher = FakeMatcher(2)
    copies = []

    class LargeSnapshot:
        count = 3000  # 36 MB: more than a socket takes of an answer that nobody reads

        def __init__(self, *_):
            copies.append(self)

        def matrix_rows(self, start, stop):
            """Return nothing but zeros."""
            return np.zeros((stop - start, self.count), np.float32)

    monkeypatch.setattr(type(matcher.galleries.get("g").gallery), "snapshot", LargeSnapshot)
    app = web.Application()
    api = GalleryApi(matcher)
    app.add_routes(api.routes())
    async with TestServer(app) as server:
        silent = []
        for _ in range(http._WAITING_AT_ONCE):
            reader, writer = await asyncio.open_connection(server.host, server.port, limit=1)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            writer.transport.pause_reading()
            writer.write(b"GET /galleries/g/similarity HTTP/1.1\r\nHost: x\r\nAccept: ")
            writer.write(f"{NPY}\r\n\r\n".encode())
            silent.append((reader, writer))
        while api._waiting < http._WAITING_AT_ONCE:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0)
        async with TestClient(server) as client:
            refused = await client.get("/galleries/g/similarity?matrix=no")
            assert refused.status == 503
            assert len(copies) <= http._BUILDS_AT_ONCE
            status = 503
            while status == 503:
                status = (await client.get("/galleries/g/similarity?matrix=no")).status
            assert status == 200
        for _, writer in silent:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8082", True),
        ("[::1]:8082", True),
        ("localhost", True),
        ("matcher:8082", True),
        ("matcher-0.matcher.streamproc.svc", True),
        ("matcher-0.matcher.streamproc.svc.cluster.local:8082", True),
        ("Galleries.Example.org.", True),
        ("", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8082", False),
        ("[::1", False),
    ],
)
def test_only_own_hosts_are_answered(host, own):
    """A page that gives its name a service's address asks for its own name, and gets nothing."""
    assert is_own_host(host, {"galleries.example.org"}) is own


async def test_another_host_is_told_so():
    """The answer is an error that names the setting."""
    app = web.Application(middlewares=[check_host([])])
    app.add_routes(GalleryApi(FakeMatcher(2)).routes())
    async with TestClient(TestServer(app)) as client:
        reply = await client.get("/galleries", headers={"Host": "evil.example"})
        assert reply.status == 421
        assert "allowed_hosts" in await reply.text()
        assert (await client.get("/galleries")).status == 200


async def test_whoever_merges_learns_where_tracks_were_cut():
    """`merge --gallery` takes the first frame of a second part from the list of persons."""
    matcher = FakeMatcher(0)
    gallery = matcher.galleries.get("g").gallery
    parts = [person(7, [1, 0], part=1), person(7, [0, 1], part=2).saying(first_frame_index=6)]
    for event in (person(1, [1, 1]), *parts):
        gallery.write(apply(gallery, event, similarity_threshold=0.7, occurred_at=TIME).writes)
    app = web.Application()
    app.add_routes(GalleryApi(matcher).routes())
    async with TestServer(app) as server:
        said = await fetch_identities("g", str(server.make_url("/")))
    assert said.cuts == {"v": {7: 6}}
