"""A gallery as the live page shows it."""

from __future__ import annotations

from persons import person

from streamproc.gallery.announcements import candidate_person
from streamproc.services.live.gallery import LiveGallery, Snapshot


def test_parts_of_a_track_share_its_picture_and_are_seen_apart() -> None:
    """A part shows the pictures of its track, and has the vetoes that it says by key."""
    events = [
        person(1, [1, 0], seen_with=[7]),
        person(7, [1, 0], part=1, seen_with=[1], seen_with_keys=["v/1", "v/7#2"]),
        person(7, [0, 1], part=2, seen_with_keys=["v/7#1"]),
    ]
    listed = tuple(
        {
            **candidate_person(event).model_dump(mode="json", exclude_none=True),
            "seen_with": event.seen_with,
            **({"seen_with_keys": event.seen_with_keys} if event.part else {}),
        }
        for event in events
    )
    pictures = {"v/7": ("7.webp", "strip.webp")}
    report = LiveGallery("g", Snapshot(persons=listed)).report({}, pictures, 0.7)
    assert [one.webp for one in report.persons] == [None, "pictures/7.webp", "pictures/7.webp"]
    assert [one.crops_webp for one in report.persons] == [None, *["pictures/strip.webp"] * 2]
    assert report.seen_apart == {("v/1", "v/7#1"), ("v/7#1", "v/7#2")}
