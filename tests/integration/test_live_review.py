"""The live page of the stream: as a program and an attacker ask it, and in a real browser."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from browser.conftest import chromium  # noqa: F401 - a fixture
from processes import eventually
from test_matcher import put, video, wait_until_done
from test_review_server import Client

from streamproc.decisions import parse_decision
from streamproc.events import AnimationReady
from streamproc.ids import video_id_of

TOPIC = "review-decisions"
SHOWN = "#candidates > .pair"


def page_of(review):
    """The address at which a service serves its page."""
    return eventually(
        lambda: re.findall(r"the page at (http://\S+)", review.log), "page", processes=[review]
    )[-1]


def start_review(stream, matcher, **settings):
    """The live page beside a matcher."""
    given = {"review__port": 0, "review__matcher_url": matcher.url} | settings
    return stream.start("review", **given)


def client_of(review):
    """A program that asks the page's server."""
    return Client(urlsplit(page_of(review)).port)


def ready(video_id, number, uri, strip_uri=None):
    """The announcement of an animation, and of the strip of crops with it."""
    strip = {"sha256": "0" * 64, "size_bytes": 5, "width_px": 96, "height_px": 192}
    return AnimationReady.make(
        gallery_id="lobby",
        video_id=video_id,
        run_id="r1",
        person_id=number,
        person_key=f"{video_id}/{number}",
        state="ready",
        uri=uri,
        crops=strip_uri and strip | {"uri": strip_uri, "frame_indices": [0]},
    )


def test_the_page_and_what_it_asks_are_for_those_who_may(stream):  # noqa: PLR0915 - one stream
    """Token, host, origin, names, paths, limits; pictures of the animator's folder alone."""
    stream = stream()
    matcher = stream.start("matcher")
    put(stream, *video("lobby", "a", seed=1))
    wait_until_done(stream)
    pictures = stream.media / "animations" / "a" / "r1"
    pictures.mkdir(parents=True)
    (pictures / "person_1.webp").write_bytes(b"RIFF1")
    (pictures / "person_1.crops.webp").write_bytes(b"RIFF2")
    (stream.media / "secret.webp").write_bytes(b"secret")
    (pictures / "person_3.webp").symlink_to(stream.media / "secret.webp")
    uris = {
        1: "animations/a/r1/person_1.webp",
        2: "animations/../secret.webp",
        3: "animations/a/r1/person_3.webp",
        4: (stream.media / "secret.webp").as_uri(),
    }
    strips = {1: "animations/a/r1/person_1.crops.webp", 2: "animations/../secret.webp"}
    events = [ready("a", number, uri, strips.get(number)) for number, uri in uris.items()]
    stream.send("animation-ready", *[(b"a", event.to_json()) for event in events])

    review = start_review(stream, matcher)
    client = client_of(review)
    status, headers, body = client.ask("GET", "/")
    assert (status, b'href="/?gallery=lobby"' in body) == (200, True)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, _, body = client.ask("GET", "/?gallery=lobby")
    data = json.loads(re.search(rb'id="data">(.*?)</script>', body, re.DOTALL)[1])
    assert (status, data["gallery"], len(data["persons"])) == (200, "lobby", 20)
    assert data["candidates"]
    shown = {one["person_key"]: one["webp"] for one in data["persons"]}
    assert all(shown[f"a/{number}"] for number in uris)
    assert client.ask("GET", f"/{shown['a/1']}")[::2] == (200, b"RIFF1")
    for number in (2, 3, 4):
        assert client.ask("GET", f"/{shown[f'a/{number}']}")[0] == 404
    strip_of = {one["person_key"]: one["crops_webp"] for one in data["persons"]}
    assert client.ask("GET", f"/{strip_of['a/1']}")[::2] == (200, b"RIFF2")
    assert client.ask("GET", f"/{strip_of['a/2']}")[0] == 404
    assert strip_of["a/3"] is None
    for path in ("/assets/../page.html", "/assets/__init__.py", "/pictures/x", "/etc/passwd"):
        assert client.ask("GET", path)[0] == 404, path
    evil = client.ask("GET", f"/?gallery={'%3Cscript%3E'}")[2]
    assert b"<script>" not in evil.replace(b"<script defer", b"")
    assert client.ask("GET", "/api/gallery")[0] == 400
    assert client.ask("GET", "/", Host="evil.example")[0] == 403
    assert client.ask("GET", "/", Origin="http://evil.example")[0] == 403

    path = "/api/decisions?gallery=lobby"

    def decide(said, **headers):
        headers = {"Content_Type": "application/json"} | headers
        return client.ask("POST", path, json.dumps(said).encode(), **headers)

    good = {"kind": "pair", "person_keys": ["a/1", "a/2"], "verdict": "same"}
    for said in (
        good | {"person_keys": ["a/1", "a/999"]},
        good | {"verdict": "maybe"},
        {"kind": "undo", "undoes": "nothing"},
        [],
    ):
        assert decide(said)[0] == 400
    assert decide(good, Content_Type="text/plain")[0] == 415
    assert decide(good, Origin="http://evil.example")[0] == 403
    status, _, body = decide(good | {"gallery_id": "other", "decided_at": "2999-01-01T00:00:00Z"})
    assert status == 201
    decided = parse_decision(body)
    assert decided.gallery_id == "lobby"
    assert decided.decided_at < "2999"
    [record] = stream.records(TOPIC)
    assert parse_decision(record.value) == decided
    assert review.metrics()["streamproc_review_decisions_total"] == 1
    status, _, body = client.ask("GET", "/api/audit?gallery=lobby")
    audit = json.loads(body)
    assert (status, audit["pairs"] + audit["left_out"]["without_probability"]) == (200, 1)

    forgotten = stream.cli("forget", "--url", matcher.url, "--person", "a/1")
    assert forgotten.returncode == 0, forgotten.stderr
    eventually(lambda: b'a/1"' not in client.ask("GET", "/?gallery=lobby")[2], "the card gone")
    assert client.ask("GET", f"/{shown['a/1']}")[0] == 404
    assert decide(good)[0] == 400
    assert review.stop() == 0

    token = "open sesame open sesame"
    closed = client_of(start_review(stream, matcher, review__token=token))
    assert closed.ask("GET", "/")[0] == 401
    assert closed.ask("GET", "/?token=wrong")[0] == 401
    status, headers, _ = closed.ask("GET", f"/?gallery=lobby&token={token.replace(' ', '%20')}")
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert token not in cookie
    assert closed.ask("GET", "/?gallery=lobby", Cookie=cookie.partition(";")[0])[0] == 200
    assert closed.ask("GET", path, Cookie="streamproc-review=guess")[0] == 401


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"review__host": "0.0.0.0"}, "review.token"),
        ({"review__host": "0.0.0.0", "review__token": "short"}, "16 characters"),
        ({"review__user_header": "X-User"}, "set review.trusted_proxies"),
        ({"review__trusted_proxies": "10.0.0.1"}, "set review.user_header"),
        (
            {"review__user_header": "X-User", "review__trusted_proxies": "0.0.0.0/0"},
            "is everybody",
        ),
    ],
)
def test_beyond_this_machine_it_asks_for_a_token(stream, settings, text):
    """It says so and does not start; no broker is needed for that."""
    stream = stream()
    done = stream.cli("review", **settings)
    assert done.returncode == 2
    assert text in done.stderr
    assert "short" not in done.stderr


@pytest.fixture
def aside():
    """Runs what needs an event loop of its own: the browser holds the one of this thread."""
    with ThreadPoolExecutor(1) as pool:

        def run(work, *arguments, **options):
            return pool.submit(work, *arguments, **options).result()

        yield run


@pytest.mark.browser
def test_a_video_appears_is_decided_and_all_that_lasts(  # noqa: PLR0915 - one stream
    stream,
    chromium,  # noqa: F811
    aside,
):
    """Candidates and pictures appear without a reload, and two browsers see each other.

    A decision is on the topics, and is there after a restart of page and matcher.
    """
    stream = aside(stream)
    matcher = stream.start("matcher")
    review = start_review(stream, matcher)
    address = page_of(review)
    troubles = []
    pages = []
    for _ in range(2):
        page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text))
        page.goto(f"{address}?gallery=lobby")
        page.locator("#review").wait_for()
        pages.append(page)
    one, other = pages
    assert one.locator(SHOWN).count() == 0
    one.evaluate("window.stays = true")
    stream.start("worker")
    stream.start("animator")
    sent = aside(stream.cli, "submit", str(stream.media / "a.mp4"), "--gallery", "lobby")
    assert sent.returncode == 0, sent.stderr

    one.locator(SHOWN).first.wait_for(timeout=60_000)
    one.locator(f"{SHOWN} img").first.wait_for(timeout=60_000)
    picture = "document.querySelector('#candidates img')?.naturalWidth"
    eventually(lambda: one.evaluate(picture) == 256, "the animation", seconds=60)
    heatmap = "document.getElementById('heatmap').data?.[0].z.length"
    eventually(lambda: one.evaluate(heatmap) == 6, "the heatmap")
    assert one.locator("#persons-grid .card").count() == 6
    assert "a.mp4" in one.locator("#facts").inner_text()
    assert one.evaluate("window.stays") is True

    one.locator(SHOWN).first.get_by_text("Different people").click()
    other.locator(f"{SHOWN} button[aria-pressed=true]").wait_for()
    assert other.locator(f"{SHOWN} button[aria-pressed=true]").inner_text() == "Different people"
    key = video_id_of("a.mp4")
    events = aside(stream.eventually, lambda: stream.events(TOPIC), "the decision")
    assert [sorted(event["person_keys"]) for event in events] == [[f"{key}/1", f"{key}/6"]]
    eventually(
        lambda: aside(stream.events, "duplicate-candidates")[-1].get("reason") == "decided",
        "the withdrawal",
    )
    # The card stays where it is, so that it can be undone.
    assert one.locator(SHOWN).count() == 1
    other.keyboard.press("z")
    one.locator(f"{SHOWN} button[aria-pressed=true]").wait_for(state="detached")
    one.locator(SHOWN).first.get_by_text("Same person").click()
    said = eventually(
        lambda: [record for record in aside(stream.records, "identities") if record.value],
        "the identity",
    )
    assert json.loads(said[-1].value)["person_keys"] == [f"{key}/1", f"{key}/6"]
    aside(wait_until_done, stream)
    assert troubles == []

    for page in pages:
        page.context.close()
    assert (review.stop(), matcher.stop()) == (0, 0)
    matcher = stream.start("matcher", matcher__state_folder=str(stream.folder / "elsewhere"))
    review = start_review(stream, matcher)
    page = chromium.new_page()
    page.goto(page_of(review))
    page.get_by_text("lobby").click()
    page.locator("#review p", has_text="1 decision").wait_for()
    assert page.locator(f"{SHOWN} button[aria-pressed=true]").inner_text() == "Same person"
    page.close()
