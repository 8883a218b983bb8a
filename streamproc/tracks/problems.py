"""What is wrong with the boxes of a track file, by code, and how it is said to a user."""

from __future__ import annotations

_REASONS = {
    "boxes-other-class": "of another class",
    "boxes-marked-ignored": "confidence 0",
    "boxes-not-finite": "numbers that are infinite or missing",
    "frame-numbers-broken": "ids or frame numbers that are not whole",
    "boxes-empty": "no width or no height",
    "boxes-duplicate": "further boxes of a track in the same frame",
    "boxes-outside-picture": "outside the picture",
    "frames-before-video": "before the first frame",
    "frames-beyond-video": "after the last frame",
}


def problem_text(code: str, count: int) -> str:
    """Return one line about `count` boxes or tracks, such as "169 boxes ignored (confidence 0)"."""
    if code == "ids-duplicate":
        return f"{_counted(count, 'track')} joined with another of the same id"
    if code == "frames-unsorted":
        return f"{_counted(count, 'box', 'boxes')} moved (frame numbers were not in order)"
    reason = _REASONS.get(code, code)
    return f"{_counted(count, 'box', 'boxes')} ignored ({reason})"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
