"""What is wrong with the boxes of a track file, by code, and how it is said to a user."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

_REASONS = {
    "ids-missing": "no id: empty or -1",
    "ids-not-whole": "an id that is no whole number",
    "ids-too-large": "an id that 64 bits do not hold exactly",
    "frame-numbers-missing": "no frame number",
    "frame-numbers-not-whole": "a frame number that is no whole number",
    "frame-numbers-too-large": "a frame number that no video reaches: is it a time?",
    "boxes-not-finite": "a coordinate that is missing or no number",
    "boxes-diverged": "larger or farther away than any picture",
    "boxes-empty": "no width or no height",
    "boxes-marked-ignored": "confidence 0",
    "boxes-other-class": "of another class",
    "boxes-duplicate": "further boxes of a track in the same frame",
    "frames-before-video": "before the first frame",
    "frames-beyond-video": "after the last frame",
    "boxes-outside-picture": "outside the picture",
}


def problem_text(code: str, count: int) -> str:
    """Return one line about `count` boxes or tracks, such as "169 boxes ignored (confidence 0)"."""
    if code == "ids-duplicate":
        return f"{_counted(count, 'track')} joined with another of the same id"
    if code == "frames-unsorted":
        return f"{_counted(count, 'box', 'boxes')} moved (frame numbers were not in order)"
    reason = _REASONS.get(code, code)
    return f"{_counted(count, 'box', 'boxes')} ignored ({reason})"


def in_words(problems: Counter[str]) -> str:
    """Say what was left out, the most first."""
    return ", ".join(problem_text(code, count) for code, count in problems.most_common() if count)


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
