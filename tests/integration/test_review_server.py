"""`streamproc review` as a program speaks to it, and as an attacker does."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import sys

import orjson
import pytest
from processes import Process, eventually, run_streamproc

import streamproc
from streamproc.decisions import PairDecision
from streamproc.offline.replay_folder import read_decisions, read_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample):
    """The folder of a replay of the sample."""
    out = tmp_path_factory.mktemp("replayed") / "out"
    streamproc.replay(
        sample / "sample.mp4", persons=sample / "sample.persons.npz", out=out, animate=False
    )
    return out


class Client:
    """A program that speaks HTTP to one server."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.headers, data

    def decide(self, said, **headers):
        """Send a decision; the status, and what is said."""
        headers = {"Content_Type": "application/json"} | headers
        body = said if isinstance(said, bytes) else orjson.dumps(said)
        status, _, data = self.ask("POST", "/api/decisions", body, **headers)
        return status, orjson.loads(data)


@contextlib.contextmanager
def reviewing(folder, tmp_path):
    """A server of the folder; the client and the process."""
    command = [sys.executable, "-m", "streamproc", "review", str(folder), "--port", "0"]
    process = Process("review", command, tmp_path / "review.log")
    found = eventually(
        lambda: re.search(r"127.0.0.1:(\d+)/", process.log), "address", processes=[process]
    )
    yield Client(int(found[1])), process
    if not process.has_ended():
        assert process.stop() == 0, process.last_lines


@pytest.fixture
def review(folder, tmp_path):
    """A server of the folder, without decisions."""
    (folder / "decisions.jsonl").unlink(missing_ok=True)
    with reviewing(folder, tmp_path) as served:
        yield served


def pair_said(folder, verdict="same"):
    """A decision about the sample's one candidate, as a page sends it."""
    [candidate] = read_folder(folder).candidates
    keys = [person.person_key for person in candidate.persons]
    return {"kind": "pair", "person_keys": keys, "verdict": verdict}


def test_a_decision_is_on_the_disk_before_it_is_answered(review, folder) -> None:
    """The process may be killed right after: what was answered is there, and half a line is not."""
    client, process = review
    status, kept = client.decide(pair_said(folder))
    assert status == 201
    process.kill()
    path = folder / "decisions.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind":"pair","half')
    [decision] = read_decisions(path)
    assert decision.decision_id == kept["decision_id"]
    assert streamproc.merge(folder).identity_count == 5


def test_how_right_the_probabilities_were_is_asked_of_the_page_and_of_the_folder(
    review, folder
) -> None:
    """The server answers figures and a picture, and `evaluate --decisions` prints the same."""
    client, _ = review
    assert orjson.loads(client.ask("GET", "/api/audit")[2])["pairs"] == 0
    assert client.decide(pair_said(folder))[0] == 201
    found = orjson.loads(client.ask("GET", "/api/audit")[2])
    [candidate] = read_folder(folder).candidates
    [row] = found["bins"]
    assert (row["pairs"], row["same"]) == (1, 1)
    assert row["error"] == pytest.approx(1 - candidate.probability)
    status, headers, picture = client.ask("GET", "/api/audit.svg?number=1")
    assert (status, headers["Content-Type"]) == (200, "image/svg+xml; charset=utf-8")
    assert picture.startswith(b"<svg")
    done = run_streamproc("evaluate", folder, "--decisions")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split("\t")[1:3] == ["1", "1.00"]
    assert orjson.loads(run_streamproc("evaluate", folder, "--decisions", "--json").stdout) == found


def test_only_one_review_of_a_folder_at_a_time(review, folder) -> None:
    """The second one says so; so does one whose port is taken."""
    client, _ = review
    second = run_streamproc("review", folder, "--port", client.port)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another review is open" in second.stderr


def test_only_files_of_the_page_are_served(review) -> None:
    """No path leaves the viewer's folder, and the vectors beside it are not given out."""
    client, _ = review
    status, headers, page = client.ask("GET", "/webp_viewer/person_selection.html")
    assert (status, b"<!doctype html>" in page) == (200, True)
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    for path in [
        "/person_embeddings.jsonl",
        "/webp_viewer/../person_embeddings.jsonl",
        "/webp_viewer/%2e%2e/decisions.jsonl",
        "/webp_viewer/..%2frun.json",
        "/webp_viewer/x%00.html",
        "//etc/passwd.html",
        "/webp_viewer//etc/hosts.html",
        "/webp_viewer/assets",
        "/webp_viewer/" + "a" * 5000 + ".html",
    ]:
        assert client.ask("GET", path)[0] in (400, 404), path[:60]


def test_other_sites_are_refused(review, folder) -> None:
    """A page of another site can reach this port, under another origin or name."""
    client, _ = review
    said = pair_said(folder)
    assert client.decide(said, Origin="http://example.org")[0] == 403
    assert client.decide(said, Host="example.org")[0] == 403
    assert client.ask("GET", "/api/decisions", Host="example.org")[0] == 403
    # A form of another site sends no JSON.
    assert client.decide(said, Content_Type="text/plain")[0] == 415
    assert not read_decisions(folder / "decisions.jsonl")
    assert client.decide(said, Origin=f"http://127.0.0.1:{client.port}")[0] == 201


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"kind":"pair"}', "person_keys"),
        (b'{"kind":"pair","person_keys":["x/1","x/2"],"verdict":"same"}', "of this gallery"),
        (b'{"kind":"undo","undoes":"nothing"}', "undoes"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_decision_is_refused_in_one_line(review, folder, body, told) -> None:
    """And nothing is written."""
    client, _ = review
    status, answer = client.decide(body)
    assert (status, told in answer["error"]) == (400, True), answer
    assert not read_decisions(folder / "decisions.jsonl")


def test_a_body_that_is_too_large_is_refused(review) -> None:
    """Before it is read whole."""
    client, _ = review
    assert client.decide(b" " * 1_000_000)[0] == 413


def test_a_folder_that_is_none_of_a_replay_is_one_line(tmp_path) -> None:
    """What was expected, and what to do."""
    done = run_streamproc("review", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected a folder that `streamproc replay` wrote" in done.stderr


def test_a_decision_whose_file_is_gone_is_not_called_kept(review, folder) -> None:
    """The folder was removed or replaced meanwhile: the page says so, and does not lose it."""
    client, _ = review
    path = folder / "decisions.jsonl"
    assert client.decide(pair_said(folder))[0] == 201
    path.rename(folder / "moved")
    status, answer = client.decide(pair_said(folder, "different"))
    assert (status, "removed or written anew" in answer["error"]) == (507, True)
    path.write_bytes(b"")
    assert client.decide(pair_said(folder, "different"))[0] == 507
    (folder / "moved").replace(path)
    assert client.decide(pair_said(folder, "different"))[0] == 201
    assert [decision.verdict for decision in read_decisions(path)] == ["same", "different"]


def test_what_is_decided_last_holds_whatever_the_clock_said(folder, tmp_path) -> None:
    """A colleague's clock was years ahead: their decision can be changed, and undone."""
    said = pair_said(folder)
    gallery_id = read_folder(folder).gallery_id
    ahead = PairDecision.make(
        gallery_id=gallery_id,
        decided_at="2099-01-01T00:00:00.0005Z",
        person_keys=said["person_keys"],
        verdict="same",
    )
    (folder / "decisions.jsonl").write_bytes(ahead.to_json() + b"\n")
    with reviewing(folder, tmp_path) as (client, _):
        assert streamproc.merge(folder).identity_count == 5
        assert client.decide({"kind": "undo", "undoes": ahead.decision_id})[0] == 201
        assert streamproc.merge(folder).identity_count == 6
        for verdict, count in [("same", 5), ("different", 6), ("same", 5), ("unsure", 6)]:
            assert client.decide(said | {"verdict": verdict})[0] == 201
            assert streamproc.merge(folder).identity_count == count


def test_an_id_is_used_once(review, folder) -> None:
    """Of two decisions with one id the earlier holds: the later one would be kept in vain."""
    client, _ = review
    said = pair_said(folder) | {"decision_id": "mine"}
    assert client.decide(said)[0] == 201
    status, answer = client.decide(said | {"verdict": "different"})
    assert (status, "used before" in answer["error"]) == (400, True)
    assert len(read_decisions(folder / "decisions.jsonl")) == 1


def test_a_last_line_without_its_end_that_is_a_decision_is_kept(folder, tmp_path) -> None:
    """As an editor or another's program writes it."""
    gallery_id = read_folder(folder).gallery_id
    line = PairDecision.make(
        gallery_id=gallery_id,
        decided_at="2026-11-30T10:00:00Z",
        person_keys=pair_said(folder)["person_keys"],
        verdict="same",
    ).to_json()
    path = folder / "decisions.jsonl"
    path.write_bytes(line)
    assert streamproc.merge(folder).identity_count == 5
    with reviewing(folder, tmp_path) as (client, _):
        assert client.decide(pair_said(folder, "unsure"))[0] == 201
    assert len(read_decisions(path)) == 2


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_decisions_that_are_no_file_are_one_line(folder, tmp_path, kind) -> None:
    """A folder that somebody sent must not have its reader write elsewhere, or wait for ever."""
    path = folder / "decisions.jsonl"
    path.unlink(missing_ok=True)
    other = tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        if kind == "link":
            other.write_text("no line end")
        path.symlink_to(other)
    try:
        done = run_streamproc("review", folder, "--port", "0")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "decisions.jsonl: cannot be" in done.stderr
        if kind == "link":
            assert other.read_text() == "no line end"
        else:
            assert not other.exists()
        if kind in ("pipe", "folder"):
            assert run_streamproc("merge", folder, "--dry-run").returncode == 1
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
