"""Deciding in a real browser: on the page from disk, and on the one that `review` serves."""

from __future__ import annotations

import contextlib
import re
import sys
from itertools import combinations

import gallery_samples as samples
import orjson
import pytest
from persons import candidate, duplicate_group
from processes import Process, eventually

import streamproc
from streamproc.decisions import parse_decision
from streamproc.gallery.identities import Identities, statements_of
from streamproc.offline.directory import OutputDirectory
from streamproc.offline.replay_folder import read_decisions, read_folder

pytestmark = pytest.mark.browser

LOOKS = [0, 1, 2, 0, 3, 4, 1, 5, 6, 0, 2, 3, 5, 1]
SHOWN = "#candidates .pair"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A gallery of 14 persons as a replay writes it; its folder and report."""
    folder = tmp_path_factory.mktemp("written")
    run = {"gallery_id": "entrance", "videos": [{"video_id": "v", "path": "entrance.mp4"}]}
    return folder, samples.write_gallery(folder, LOOKS, run=run)


@pytest.fixture
def served(written, tmp_path):
    """Start `streamproc review` on the folder; its address and the decisions that it keeps."""
    folder, _ = written
    (folder / "decisions.jsonl").unlink(missing_ok=True)
    with reviewing(folder, tmp_path) as address:
        yield address, folder / "decisions.jsonl"


@contextlib.contextmanager
def reviewing(folder, tmp_path):
    """Serve a folder; its address."""
    command = [sys.executable, "-m", "streamproc", "review", str(folder), "--port", "0"]
    process = Process("review", command, tmp_path / "review.log")
    found = eventually(
        lambda: re.search(r"http://127.0.0.1:\d+/", process.log), "address", processes=[process]
    )
    yield found[0]
    assert process.stop() == 0, process.last_lines


@pytest.fixture
def open_at(chromium):
    """Open an address; at the end there must have been no trouble."""
    contexts = []
    troubles = []

    def opened(address, *, width=1280):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(address)
        page.locator("#review").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def pressed(card):
    """What a card shows as decided."""
    return card.locator("button[aria-pressed=true]").all_inner_texts()


def marks_with(keys, text):
    """What the figures of two persons say who were called the same."""
    return [f"{text} · Same as {key.rpartition('/')[2]}" for key in reversed(keys)]


def test_decisions_by_keys_are_kept_in_the_folder_and_shown_after_a_reload(served, open_at) -> None:
    """Same, different, not sure, and undo of the last: each is a line, and the next card waits."""
    address, decisions = served
    page = open_at(address)
    page.keyboard.press("j")
    for count, key in enumerate(["s", "d", "u", "s", "z"], 1):
        page.keyboard.press(key)
        eventually(lambda count=count: len(read_decisions(decisions)) == count, f"{count} lines")
    lines = decisions.read_bytes().splitlines()
    kinds = [orjson.loads(line).get("verdict", "undo") for line in lines]
    assert kinds == ["same", "different", "unsure", "same", "undo"]
    page.reload()
    page.locator("#review").wait_for()
    cards = page.locator(SHOWN)
    assert [pressed(cards.nth(place)) for place in range(4)] == [
        ["Same person"],
        ["Different people"],
        ["Not sure"],
        [],
    ]
    assert parse_decision(lines[0]).shown.similarity is not None


def test_the_audit_says_how_right_the_probabilities_were_and_follows(tmp_path, open_at) -> None:
    """A table and a picture, once it is opened; one more decision changes it by itself."""
    entries = [samples.entry(number, number) for number in (1, 2, 3)]
    pairs = [("v/1", "v/2", 0.8), ("v/1", "v/3", 0.4)]
    report = samples.report_of(
        entries,
        looks=[0] * 3,
        candidates=tuple(candidate(a, b, 0.9, probability=p) for a, b, p in pairs),
        vetoed_pairs=(),
        run={"gallery_id": "entrance", "videos": [{"video_id": "v", "path": "entrance.mp4"}]},
    )
    with OutputDirectory(tmp_path / "out") as out:
        out.write_report(report)
        out.commit()
    with reviewing(tmp_path / "out", tmp_path) as address:
        page = open_at(address)
        page.locator("#audit summary").click()
        page.get_by_text("was called the same or different so far").wait_for()
        page.keyboard.press("j")
        page.keyboard.press("s")
        page.get_by_role("row", name="0.80 to 0.80 1 1.00 0.20").wait_for()
        picture = "document.querySelector('#audit img').naturalWidth"
        eventually(lambda: page.evaluate(picture) > 0, "the diagram")
        page.keyboard.press("d")
        page.locator("#audit-result", has_text="2 pairs").wait_for()
        page.close()  # before the server ends: a page that loses it says so


def test_a_group_is_decided_at_once_and_somebody_is_left_out(tmp_path, open_at) -> None:
    """One key for a person in four pieces, of which one is somebody else."""
    entries = [samples.entry(number, number) for number in (1, 2, 3, 4, 5)]
    keys = [one.person_key for one in entries]
    report = samples.report_of(
        entries,
        looks=[0] * 5,
        candidates=tuple(candidate(a, b, 0.9) for a, b in combinations(keys[:4], 2)),
        groups=(duplicate_group(*keys[:4]),),
        vetoed_pairs=(),
    )
    with OutputDirectory(tmp_path) as out:
        out.write_report(report)
        out.commit()
    page = open_at((tmp_path / "webp_viewer" / "person_selection.html").as_uri())
    group = page.locator("#groups > .pair")
    last = group.locator("figure", has_text="Person 4")
    last.get_by_role("button", name="Leave out").click()
    page.keyboard.press("j")
    group.focus()
    page.keyboard.press("s")
    page.locator("#groups .is-decided").wait_for()
    decisions = page.evaluate("review.store.decisions")
    assert [(one["kind"], sorted(one["person_keys"])) for one in decisions] == [("group", keys[:3])]
    group.locator("summary").click()
    first = group.locator(".pairs > .pair", has_text="1 and 2")
    assert "Same person" in pressed(first)[0]
    assert pressed(group.locator(".pairs > .pair", has_text="1 and 4")) == []


def test_two_browsers_see_each_others_decisions(served, open_at) -> None:
    """Without a reload."""
    address, _ = served
    one, other = open_at(address), open_at(address)
    one.locator(SHOWN).first.get_by_text("Different people").click()
    other.locator(f"{SHOWN} button[aria-pressed=true]").first.wait_for()
    assert pressed(other.locator(SHOWN).first) == ["Different people"]


def test_the_page_says_what_follows_as_the_library_does(served, open_at, written) -> None:
    """A third pair is decided by two others, and the page and `merge` agree on all pairs."""
    address, decisions = served
    _, report = written
    page = open_at(address)
    cards = page.locator(SHOWN)
    for place in range(min(cards.count(), 8)):
        verdict = "Different people" if place % 3 == 2 else "Same person"
        cards.nth(place).locator("button", has_text=verdict).click()
        eventually(lambda place=place: len(read_decisions(decisions)) > place, "the decision")
    page.locator("#review p", has_text="8 decisions").wait_for()
    vetoes = [pair.person_keys for pair in report.vetoed_pairs]
    keys = [person.person_key for person in report.persons]
    library = Identities("entrance", keys, statements_of(read_decisions(decisions)), vetoes)
    for a in keys:
        for b in keys:
            if a < b:
                shown = page.evaluate("([a, b]) => review.facts(a, b)", [a, b])
                is_one = library.of_key[a] is library.of_key[b]
                assert (shown["verdict"] == "same" and not shown["inConflict"]) == is_one, (a, b)
                if library.is_ruled_out(a, b):
                    assert shown["verdict"] == "different", (a, b)


def test_the_queue_shows_what_is_undecided_and_keeps_its_place(served, open_at) -> None:
    """A decided card stays where it is until the list is asked for anew."""
    address, _ = served
    page = open_at(address)
    page.locator("#review-filter").select_option("undecided")
    count = page.locator(SHOWN).count()
    first = page.locator(SHOWN).first
    title = first.locator("h3").inner_text()
    first.get_by_text("Different people").click()
    page.locator(f"{SHOWN}.is-decided").first.wait_for()
    assert page.locator(SHOWN).count() == count
    page.locator("#review-filter").select_option("decided")
    assert page.locator(f"{SHOWN} h3").all_inner_texts() == [title]


def test_keys_are_listed_and_do_nothing_while_somebody_types(served, open_at) -> None:
    """`?` lists them; a search for "s" decides nothing."""
    address, decisions = served
    page = open_at(address)
    page.keyboard.press("?")
    assert "same person" in page.locator("dialog.keys").inner_text()
    page.keyboard.press("Escape")
    page.locator("#persons-find").press_sequentially("sduz")
    assert read_decisions(decisions) == []


def test_people_are_wanted_and_verified_until_their_tracks_change(served, open_at) -> None:
    """By key of all on a card, by button of one; the page says of each what merge would."""
    address, decisions = served
    page = open_at(address)
    first = page.locator(SHOWN).first
    keys = first.locator("figure").evaluate_all("all => all.map((one) => one.dataset.key)")
    for key in ("j", "s", "k", "w", "v"):
        page.keyboard.press(key)
    page.locator("#review p", has_text="3 decisions").wait_for()
    assert first.locator(".marks").all_inner_texts() == marks_with(keys, "Wanted · Verified")

    third = page.evaluate(
        """keys => {
            const pairs = review.vetoes.filter((pair) => pair.some((key) => keys.includes(key)));
            return review.keys.find((key) => !keys.includes(key) && !pairs.flat().includes(key));
        }""",
        keys,
    )
    card = page.locator(f'#persons-grid figure[data-key="{third}"]')
    card.locator("[data-mark=unwanted]").click()
    page.locator("#review p", has_text="4 decisions").wait_for()
    assert card.locator(".marks").inner_text() == "Not wanted"
    said = page.evaluate("[...review.people].map(([key, one]) => [key, {...one}])")
    found = Identities(
        "entrance", [key for key, _ in said], statements_of(read_decisions(decisions))
    )
    for key, one in said:
        expected = found.of_key[key]
        assert sorted(one["keys"]) == sorted(expected.person_keys)
        assert (one["isVerified"], one["isWanted"]) == (expected.is_verified, expected.is_wanted)

    pair = {"kind": "pair", "person_keys": [keys[0], third], "verdict": "same"}
    page.evaluate("said => review.keep(() => said)", pair)
    assert "Verified" not in first.inner_text()
    page.keyboard.press("z")
    page.locator("#review p", has_text="4 decisions").wait_for()
    assert first.locator(".marks").all_inner_texts() == marks_with(keys, "Wanted · Verified")
    first.focus()
    page.keyboard.press("v")
    page.locator("#review p", has_text="3 decisions").wait_for()
    assert first.locator(".marks").all_inner_texts() == marks_with(keys, "Wanted")


def test_anybody_can_be_called_the_same_as_somebody_by_likeness(served, open_at) -> None:
    """Also two who are listed nowhere; those who were seen apart cannot be chosen."""
    address, decisions = served
    page = open_at(address, width=390)
    key = page.evaluate("review.vetoes[0][0]")
    card = page.locator(f'#persons-grid figure[data-key="{key}"]')
    card.get_by_role("button", name="Verified").focus()
    page.keyboard.press("a")
    dialog = page.locator("dialog.chooser")
    while dialog.get_by_text("Show more").is_visible():
        dialog.get_by_text("Show more").click()
    offered = dialog.locator("figure").evaluate_all("all => all.map((one) => one.dataset.key)")
    apart = {other for pair in page.evaluate("review.vetoes") if key in pair for other in pair}
    assert set(offered) == set(page.evaluate("review.keys")) - apart - {key}
    texts = re.findall(r"similarity (\S+)", dialog.inner_text())
    likeness = [float(text.replace("\u2212", "-")) for text in texts]
    assert likeness == sorted(likeness, reverse=True)
    assert len(likeness) == len(offered)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    dialog.get_by_role("button", name="Same person").last.click()
    page.locator("#review p", has_text="1 decision").wait_for()
    [decision] = read_decisions(decisions)
    assert (set(decision.person_keys), decision.verdict) == ({key, offered[-1]}, "same")
    assert decision.shown.similarity == pytest.approx(likeness[-1], abs=6e-4)
    assert card.locator(".marks").inner_text() == f"Same as {offered[-1].rpartition('/')[2]}"
    assert dialog.count() == 0


def test_from_disk_decisions_stay_in_the_browser_and_are_saved_as_a_file(
    written, open_at, tmp_path
) -> None:
    """For those who run no server: what is downloaded is a decisions.jsonl."""
    folder, _ = written
    page = open_at((folder / "webp_viewer" / "person_selection.html").as_uri())
    page.locator(SHOWN).first.get_by_text("Same person").click()
    page.reload()
    page.locator("#review").wait_for()
    assert pressed(page.locator(SHOWN).first) == ["Same person"]
    with page.expect_download() as download:
        page.get_by_text("Save decisions.jsonl").first.click()
    assert download.value.suggested_filename == "decisions.jsonl"
    saved = tmp_path / "decisions.jsonl"
    download.value.save_as(saved)
    [decision] = read_decisions(saved)
    assert (decision.gallery_id, decision.verdict) == ("entrance", "same")


def test_on_a_phone_nothing_is_cut_off(served, open_at) -> None:
    """The bar and the buttons wrap."""
    page = open_at(served[0], width=390)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


def test_the_page_knows_all_vetoes_as_merge_does(open_at, tmp_path, sample) -> None:
    """Also of two who look so little alike that they are listed nowhere."""
    out = tmp_path / "out"
    streamproc.replay(
        sample / "sample.mp4", persons=sample / "sample.persons.npz", out=out, animate=False
    )
    found = read_folder(out)
    page = open_at((out / "webp_viewer" / "person_selection.html").as_uri())
    assert page.evaluate("review.vetoes.length") == len(found.vetoes())
    keys = sorted(max(found.vetoes()))
    page.evaluate("keys => review.keep(() => ({ kind: 'group', person_keys: keys }))", keys)
    assert page.evaluate("([a, b]) => review.facts(a, b).inConflict", keys)


def test_two_windows_from_disk_lose_nothing_of_each_other(written, chromium) -> None:
    """Each sees at once what the other decided; of other tracks nothing is taken over."""
    folder, _ = written
    path = folder / "webp_viewer" / "person_selection.html"
    context = chromium.new_context()
    one, other = context.new_page(), context.new_page()
    for page in (one, other):
        page.goto(path.as_uri())
        page.locator("#review").wait_for()
    one.locator(SHOWN).nth(0).get_by_text("Same person").click()
    other.locator(f"{SHOWN} button[aria-pressed=true]").first.wait_for()
    other.locator(SHOWN).nth(1).get_by_text("Different people").click()
    one.reload()
    one.locator("#review p", has_text="2 decisions").wait_for()
    text = path.read_text()
    other_run = path.with_name("other.html")
    run = one.evaluate("data.run")
    other_run.write_text(text.replace(run, "0" * 32))
    one.goto(other_run.as_uri())
    one.locator("#review p", has_text="0 decisions").wait_for()
    other_run.unlink()
    context.close()


def test_what_is_decided_last_holds_though_the_clock_was_set_back(written, open_at) -> None:
    """Or though both come within one millisecond."""
    folder, _ = written
    page = open_at((folder / "webp_viewer" / "person_selection.html").as_uri())
    page.evaluate("Date.now = () => 1_000_000_000_000")
    first = page.locator(SHOWN).first
    for text in ["Same person", "Different people", "Not sure", "Same person"]:
        first.get_by_text(text).click()
        page.wait_for_function(
            "word => document.querySelector("
            f"'{SHOWN} button[aria-pressed=true]')?.textContent === word",
            arg=text,
        )


def test_the_words_of_a_decided_card_can_be_read_and_its_buttons_end_it(served, open_at) -> None:
    """Only the pictures fade; the card has no gap as wide as the page's foot."""
    page = open_at(served[0])
    card = page.locator(SHOWN).first
    card.get_by_text("Same person").click()
    page.locator(f"{SHOWN}.is-decided").wait_for()
    opacity = "element => getComputedStyle(element).opacity"
    assert card.locator(".sides").evaluate(opacity) == "1"
    assert card.locator("footer").evaluate("foot => getComputedStyle(foot).paddingTop") == "0px"
