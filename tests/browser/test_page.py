"""The page, opened from disk in headless Chromium as a reader would."""

from __future__ import annotations

from dataclasses import replace

import gallery_samples as samples
import numpy as np
import pytest
from persons import candidate, duplicate_group, track_suspect
from processes import eventually

from streamproc.animation import encode_webp
from streamproc.offline.directory import OutputDirectory
from streamproc.offline.report import VetoedPair

pytestmark = pytest.mark.browser

LOOKS = [0, 1, 2, 0, 3, 4, 1, 5, 6, 0, 2, 3, 5, 1]
HOSTILE = "<img src=x onerror=document.title=1>"


@pytest.fixture
def open_page(chromium):
    """Open a gallery's page; at the end there must be no trouble and no request but to files."""
    contexts = []
    troubles = []

    def note_request(request):
        if not request.url.startswith(("file:", "data:")):
            troubles.append(f"asked for {request.url}")

    def opened(folder, *, width=1280, scheme="light", motion="no-preference"):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion=motion
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:200]}"))
        page.on("request", note_request)
        page.goto((folder / "webp_viewer" / "person_selection.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="session")
def usual(tmp_path_factory):
    """A gallery of 14 persons with candidates and vetoed pairs; its folder and report."""
    folder = tmp_path_factory.mktemp("usual")
    return folder, samples.write_gallery(folder, LOOKS)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A gallery of which every text is an attack or far too long."""
    folder = tmp_path_factory.mktemp("hostile")
    ids = [f"{HOSTILE}/7", f"gate-{'2' * 60}/12", "a&b</script><script>/7"]
    report = samples.write_gallery(
        folder,
        [0, 1, 0],
        ids=ids,
        video_name=f"{HOSTILE}.mp4",
        title="</title>$data<!--.mp4",
        notices=(HOSTILE,),
    )
    return folder, report


def write(folder, report, *animated):
    """Write a report and the animations of some persons."""
    with OutputDirectory(folder) as out:
        for person_id in animated:
            out.write_webp(person_id, encode_webp(samples.walk(person_id, 3)))
        out.write_report(report)
        out.commit()


def scroll_through(page):
    """Scroll to the end in steps, so that what is loaded lazily is loaded."""
    page.evaluate("""async () => {
        for (let y = 0; y < document.body.scrollHeight; y += 400) {
            scrollTo({ top: y, behavior: "instant" });
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
        }
    }""")


def heatmap(page):
    """The values that the heatmap shows, in rows."""
    page.wait_for_function("document.getElementById('heatmap').data !== undefined")
    return page.evaluate("document.getElementById('heatmap').data[0].z")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("gallery", ["usual", "hostile"])
def test_nothing_overflows_and_every_image_loads(gallery, width, scheme, open_page, request):
    """On a desk or a phone, light or dark, nothing is cut off and no image is missing."""
    folder, _ = request.getfixturevalue(gallery)
    page = open_page(folder, width=width, scheme=scheme)
    heatmap(page)
    page.evaluate("document.getElementById('vetoed').open = true")
    scroll_through(page)
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    too_wide = page.evaluate("""[...document.querySelectorAll('main *')]
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .map((element) => element.outerHTML.slice(0, 90))""")
    assert too_wide == []


def test_the_heatmap_holds_the_matrix(usual, open_page):
    """The heatmap shows the similarity of every two persons."""
    folder, report = usual
    rows = heatmap(open_page(folder))
    assert (len(rows), {len(row) for row in rows}) == (len(LOOKS), {len(LOOKS)})
    np.testing.assert_allclose(rows, report.similarity, atol=5.1e-5)


def test_candidates_come_first_and_the_most_similar_of_them_first(usual, open_page):
    """The page begins with all candidates, sorted by similarity."""
    folder, report = usual
    page = open_page(folder)
    values = [float(text) for text in page.locator("#candidates .value b").all_inner_texts()]
    assert len(values) == len(report.candidates)
    assert values == sorted(values, reverse=True)
    assert page.locator("h2").first.inner_text() == "Possible duplicates"


def test_groups_come_first_with_their_pairs_inside(tmp_path, open_page):
    """A person in three pieces has one card, in order of time, with its pairs inside."""
    ids = (1, 2, 3, 4, 5)
    entries = [samples.entry(i, i) for i in ids]
    keys = [one.person_key for one in entries]
    pairs = [(0, 1), (0, 2), (1, 2), (0, 4)]
    report = samples.report_of(
        entries,
        looks=[0] * 5,
        candidates=tuple(candidate(keys[a], keys[b], 0.9) for a, b in pairs),
        groups=(duplicate_group(*keys[:3]),),
        vetoed_pairs=(),
    )
    write(tmp_path, report)
    page = open_page(tmp_path)
    heatmap(page)
    assert page.locator("#groups h3").all_inner_texts() == ["3 pieces: 1, 3, 2"]
    assert page.locator("#candidates > .pair h3").all_inner_texts() == ["1 and 5"]
    page.locator("#groups summary").click()
    page.wait_for_function("document.querySelectorAll('#groups .pairs > .pair').length === 3")
    names = page.locator("#groups .pairs > .pair h3").all_inner_texts()
    assert sorted(names) == ["1 and 2", "1 and 3", "2 and 3"]


def test_both_parts_of_a_track_are_shown_side_by_side(tmp_path, open_page):
    """A track that was taken apart has a card with both parts; without any there is no section."""
    people = [samples.entry(f"v/7#{part}", part) for part in (1, 2)]
    both = VetoedPair(("v/7#1", "v/7#2"), 0.9)
    report = samples.report_of(people, looks=[0, 3], candidates=(), vetoed_pairs=(both,))
    write(tmp_path / "none", report)
    page = open_page(tmp_path / "none")
    assert page.locator("#suspects").is_hidden()
    stills = {f"v/7#{part}": encode_webp(samples.walk(7, part, 1)) for part in (1, 2)}
    suspects = (track_suspect("v", 7),)
    write(tmp_path / "one", replace(report, suspects=suspects, stills=stills))
    page = open_page(tmp_path / "one")
    assert page.locator("#suspects h3").all_inner_texts() == ["Track 7"]
    assert page.locator("#suspects .name").all_inner_texts() == ["Person 7#1", "Person 7#2"]
    page.wait_for_function(
        "[...document.querySelectorAll('#suspects img')].filter((one) => one.naturalWidth).length"
        " === 2"
    )
    assert "From frame 104 on" in page.locator("#suspects .why").inner_text()
    assert "1 track seemed" in page.locator("#suspects-lead").inner_text()
    page.locator("#compare-a").select_option(label="7#1")
    page.locator("#compare-b").select_option(label="7#2")
    page.wait_for_function(
        "document.querySelector('#compare-result .why').textContent.includes('parts of one track')"
    )


def test_a_click_on_a_cell_shows_the_pair(usual, open_page):
    """A click on a cell of the heatmap compares its row's person with its column's."""
    page = open_page(usual[0])
    heatmap(page)
    page.locator("#heatmap").scroll_into_view_if_needed()
    plot = page.locator("#heatmap .nsewdrag").first.bounding_box()
    width, height = plot["width"] / len(LOOKS), plot["height"] / len(LOOKS)
    page.mouse.click(plot["x"] + 9.5 * width, plot["y"] + 4.5 * height)
    page.wait_for_function(
        "document.querySelector('#compare-result h3').textContent === '5 and 10'"
    )


def test_two_persons_are_compared_without_a_mouse(usual, open_page):
    """Any two persons can be chosen from lists, with why they are no candidate."""
    page = open_page(usual[0])
    page.locator("#compare-a").select_option(label="5")
    page.locator("#compare-b").select_option(label="12")
    assert page.locator("#compare-result h3").inner_text() == "5 and 12"
    assert "Ruled out" in page.locator("#compare-result .why").inner_text()


def test_vetoed_pairs_are_folded_away_and_say_why(usual, open_page):
    """Pairs that were ruled out show on demand, each with its reason."""
    folder, report = usual
    page = open_page(folder)
    assert not page.locator("#vetoed-list").is_visible()
    page.locator("#vetoed summary").press("Enter")
    page.locator("#vetoed-list li").first.wait_for()
    assert page.locator("#vetoed-list li").count() == len(report.vetoed_pairs)
    page.locator("#vetoed-list button").first.click()
    assert "Ruled out: seen apart in" in page.locator("#compare-result .why").inner_text()


def test_hostile_texts_stay_texts(hostile, open_page):
    """Markup in names, ids and notices is shown as text and never runs."""
    page = open_page(hostile[0])
    heatmap(page)
    assert page.title() == "</title>$data<!--.mp4 · streamproc"
    assert page.locator("h1").inner_text() == "</title>$data<!--.mp4"
    assert page.locator("#notices").inner_text() == HOSTILE
    assert page.locator("img[src=x], main script").count() == 0


def test_videos_of_one_name_are_told_apart_by_their_ids(tmp_path, open_page):
    """Two cameras write clip.mp4: times in them say nothing for or against a pair of both."""
    people = [
        samples.entry(person_id, 0, video_name="clip.mp4") for person_id in ("gate/1", "hall/1")
    ]
    write(tmp_path, samples.report_of(people, looks=[0, 0], title="clip.mp4"))
    card = open_page(tmp_path).locator("#candidates .pair")
    assert "Seen in different videos" in card.locator(".why").inner_text()
    assert card.locator(".timeline").count() == 0
    assert card.locator(".id").all_inner_texts() == ["gate/1", "hall/1"]


def test_persons_are_found_and_sorted(usual, open_page):
    """Persons can be sorted by frames and found by their id."""
    page = open_page(usual[0])
    page.locator("#persons-sort").select_option("frames")
    frames = [
        int(text.split()[0])
        for text in page.locator("#persons-grid figcaption [title]").all_text_contents()
    ]
    assert frames == sorted(frames, reverse=True)
    page.locator("#persons-find").fill("13")
    assert page.locator("#persons-grid .card").count() == 1
    assert page.locator("#persons-count").inner_text() == "1 of 14 persons"


def test_animations_stand_still_for_who_wants_less_motion(usual, open_page):
    """With reduced motion animations stand still until Play is pressed."""
    page = open_page(usual[0], motion="reduce")
    page.wait_for_selector("#candidates canvas")
    button = page.locator("#motion")
    assert button.inner_text() == "Play"
    button.click()
    assert page.locator("#candidates canvas").count() == 0
    assert button.get_attribute("aria-label") == "Pause the animations"


@pytest.mark.parametrize(
    ("entries", "looks", "notices", "texts"),
    [
        ([], [], (), ["No persons", "Nothing was compared", "No heatmap"]),
        ([1], [0], (), ["It takes two persons to compare.", "No animation: no room on the disk"]),
        ([1, 2], [0, 4], (), ["No possible duplicates"]),
        (
            [1, 2],
            None,
            ("similarity was skipped: no weights",),
            ["similarity was skipped: no weights", "No heatmap"],
        ),
    ],
    ids=["no-persons", "one-person", "no-candidates", "no-similarity"],
)
def test_what_is_missing_is_said(entries, looks, notices, texts, tmp_path, open_page):
    """Without persons, pairs, weights or animations the page says what is missing."""
    people = [
        samples.entry(i, place, webp_error="no room on the disk") for place, i in enumerate(entries)
    ]
    write(tmp_path, samples.report_of(people, looks=looks, notices=notices))
    page = open_page(tmp_path, width=390)
    shown = page.locator("body").inner_text()
    assert [text for text in texts if text not in shown] == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    has_heatmap = looks is not None and len(looks) > 1
    assert (tmp_path / "webp_viewer/assets/plotly.min.js").exists() == has_heatmap


@pytest.mark.long
def test_six_hundred_persons_stay_usable(tmp_path, open_page):
    """With 600 persons lists are cut to what can be shown, and the page stays small.

    The heatmap is drawn once somebody comes near it.
    """
    people = [samples.entry(i, i, webp="webp/person_0.webp") for i in range(600)]
    report = samples.report_of(people, looks=[i // 3 for i in range(600)])
    write(tmp_path, report, 0)
    page = open_page(tmp_path)
    assert not page.evaluate("Boolean(document.getElementById('heatmap').data)")
    page.locator("#similarity").scroll_into_view_if_needed()
    eventually(
        lambda: page.evaluate("Boolean(document.getElementById('heatmap').data)"), "the heatmap"
    )
    assert len(heatmap(page)) == 600
    assert page.locator("#candidates .pair").count() == 12
    page.locator("#candidates-more button").click()
    assert page.locator("#candidates .pair").count() == 24
    page.locator("#vetoed summary").click()
    page.locator("#vetoed-list li").first.wait_for()
    assert page.locator("#vetoed-list li").count() == min(1001, len(report.vetoed_pairs))
    assert (tmp_path / "webp_viewer/person_selection.html").stat().st_size < 2_000_000
