"""How many key strokes a reviewer needs: PETS with SORT's tracks, on the real page in a browser.

`python tests/benchmarks/review_keys.py [DATA]`; DATA is the folder of research data. A script sees
what the page shows, decides by the truth, and has a keyboard alone. Where the page says that a
decision is in conflict, as one person had two boxes apart, it is undone. Then the tracks are merged
as decided, and compared with the tracks merged by the truth within each card that was decided.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from common import SHARED, print_machine
from playwright.sync_api import sync_playwright

from streamproc import merge, replay
from streamproc.offline.evaluation import evaluate, owners
from streamproc.tracks import read_tracks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu"]
FOCUSED = """() => {
  const card = document.activeElement.closest(".pair");
  return card && [card.dataset.group || "", card.dataset.candidate || ""];
}"""


class Keyboard:
    """A page's keyboard, which counts its strokes."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.strokes = 0

    def press(self, key: str) -> None:
        """Press one key."""
        self._page.keyboard.press(key)
        self.strokes += 1

    def card(self) -> list[str] | None:
        """Return the ids of the group or candidate that has the focus, None where none has."""
        found: list[str] | None = self._page.evaluate(FOCUSED)
        return found

    def wait_for(self, count: int) -> None:
        """Return once the page says that it has so many decisions."""
        text = "1 decision" if count == 1 else f"{count} decisions"
        self._page.locator("#review p[role=status]", has_text=re.compile(f"^{text}$")).wait_for()

    def shows_conflict(self) -> bool:
        """Return whether the page says that a decision cannot hold."""
        return self._page.locator(".in-conflict").count() > 0


@contextmanager
def reviewing(out: Path) -> Iterator[str]:
    """Serve a folder's page; its address."""
    command = [sys.executable, "-m", "streamproc", "review", str(out), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+/", process.stderr.readline())
            assert found is not None
            yield found[0]
        finally:
            process.terminate()


def key_for(members: list[int | None]) -> str:
    """Return the key for a card of these persons: all one, not all, or who knows."""
    if None in members:
        return "u" if len(members) == 2 else "j"
    if len(set(members)) == 1:
        return "s"
    return "d" if len(members) == 2 else "j"


def decide(
    keyboard: Keyboard, events: Mapping[str, list[str]], person_of: Mapping[str, int | None]
) -> list[list[str]]:
    """Go through all cards; return the keys of each one whose decision stands."""
    decided: list[list[str]] = []
    keyboard.press("j")
    card = keyboard.card()
    while card is not None:
        keys = events["".join(card)]
        key = key_for([person_of.get(one) for one in keys])
        keyboard.press(key)
        if key != "j":
            decided.append(keys)
            keyboard.wait_for(len(decided))
            if keyboard.shows_conflict():
                keyboard.press("z")
                decided.pop()
                keyboard.wait_for(len(decided))
        before, card = card, keyboard.card()
        if card == before:
            return decided
    return decided


def cards_of(out: Path) -> dict[str, list[str]]:
    """Return the person keys of each group and candidate of a folder, by its id."""
    cards: dict[str, list[str]] = {}
    for line in (out / "duplicate_candidates.jsonl").read_bytes().splitlines():
        event: dict[str, Any] = orjson.loads(line)
        cards[event["candidate_id"]] = [one["person_key"] for one in event["persons"]]
    for line in (out / "duplicate_groups.jsonl").read_bytes().splitlines():
        event = orjson.loads(line)
        cards[event["group_id"]] = event["person_keys"]
    return cards


def number(key: str) -> int:
    """Return the id of a person key."""
    return int(key.rpartition("/")[2])


def main(data: Path) -> None:
    """Print strokes, pairs, and IDF1 of the merged tracks."""
    print_machine()
    tracks_path = data / "trackers" / "PETS09-S2L1" / "sort.txt"
    tracks = read_tracks(tracks_path).tracks
    truth = read_tracks(data / "trackers" / "PETS09-S2L1" / "gt.txt").tracks
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        result = replay(data / "videos" / "vtest.avi", persons=tracks_path, out=out, animate=False)
        cards = cards_of(out)
        own = dict(zip((track.person_id for track in tracks), owners(tracks, truth), strict=True))
        person_of = {key: own[number(key)] for keys in cards.values() for key in keys}
        with reviewing(out) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.locator("#review").wait_for()
            keyboard = Keyboard(page)
            decided = decide(keyboard, cards, person_of)
            browser.close()
        done = merge(out, out / "merged.txt")
        print(f"{len(done.conflicts)} conflicts, {done.doubled_boxes} boxes where two were one")
        merged = read_tracks(out / "merged.txt").tracks
    by_truth = [
        (number(a), number(b))
        for keys in decided
        for a, b in combinations(keys, 2)
        if person_of[a] is not None and person_of[a] == person_of[b]
    ]
    expected = evaluate(tracks, truth, [], [], {"decided": by_truth}).merged
    pairs = len(result.candidates)
    print(f"{keyboard.strokes} key strokes for {pairs} pairs, {len(decided)} decisions")
    print(f"IDF1 of the tracks as they are {expected[0].idf1:.4f}")
    print(f"IDF1 merged as decided {evaluate(merged, truth, [], []).idf1:.4f}")
    print(f"IDF1 of what was decided, merged by the truth {expected[1].idf1:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED / "data")
