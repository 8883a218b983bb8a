"""What heights say of a pair: who is found again is as large as when last seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import person

from streamproc.events import CropInfo
from streamproc.gallery.calibration.sizes import (
    LARGEST_CHANGE,
    LOG_ODDS_PER_CHANGE,
    SAME_HEIGHT_LOG_ODDS,
    size_log_odds,
)

PAIR = np.array([[0, 1]])


def seen(number, first, last, *heights, video_id="v"):
    """A person seen from frame `first` to `last` in boxes of these heights.

    They are spread over that time; the last comes first in the event.
    """
    frames = np.linspace(first, last, len(heights)).round().astype(int).tolist()
    crops = [
        CropInfo(
            frame_index=frame, pts_seconds=frame / 10, box_xyxy=(5, 7, 20, 7 + height), quality=1
        )
        for frame, height in zip(frames, heights, strict=True)
    ]
    track = {"first_frame_index": first, "last_frame_index": last, "crops": tuple(crops[::-1])}
    return person(number, [1, 0], video_id=video_id).model_copy(update=track)


def of(one, other) -> float:
    """The evidence of one pair."""
    return size_log_odds([one, other], PAIR)[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(seen(1, 0, 90, 100, 100), seen(2, 100, 190, 100, 100), id="throughout"),
        pytest.param(
            seen(1, 0, 90, 400, 90, 110),
            seen(2, 100, 190, 100, 100, 30),
            id="where one ends and one begins",
        ),
        pytest.param(seen(1, 0, 90, 100), seen(2, 91, 91, 100), id="one crop each"),
    ],
)
def test_the_same_height_speaks_for_one_person(one, other) -> None:
    """Equal heights where one track ends and the other begins give the full evidence."""
    assert of(one, other) == pytest.approx(SAME_HEIGHT_LOG_ODDS)


def test_another_height_speaks_against_it_up_to_a_limit() -> None:
    """The evidence falls with the log of the change in height, up to a limit."""
    changes = [
        of(seen(1, 0, 90, 100), seen(2, 100, 190, 100 * np.exp(change)))
        for change in (-0.1, 0.1, 0.2, 0.5, 3)
    ]
    assert changes == pytest.approx(
        [
            SAME_HEIGHT_LOG_ODDS - LOG_ODDS_PER_CHANGE * c
            for c in (0.1, 0.1, 0.2, 0.5, LARGEST_CHANGE)
        ]
    )
    assert changes[-1] < -1


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(seen(2, 100, 190, 100, video_id="w"), id="another video"),
        pytest.param(seen(2, 90, 190, 100), id="beside the other at once"),
        pytest.param(seen(2, 100, 190), id="no crops"),
        pytest.param(seen(2, 100, 190, 0.0), id="no height"),
    ],
)
def test_where_nothing_is_known_nothing_is_said(other) -> None:
    """Other videos, overlapping tracks and missing heights give no evidence."""
    assert of(seen(1, 0, 90, 100), other) == 0


tracks = st.builds(
    lambda first, length, heights: (first, first + length, heights),
    st.integers(0, 300),
    st.integers(0, 100),
    st.lists(st.floats(1, 1000), min_size=1, max_size=8),
)


@given(tracks, tracks)
def test_it_is_the_same_from_both_ends(one, other) -> None:
    """The evidence does not depend on which person is named first, and keeps its limits."""
    pair = [
        seen(number, first, last, *heights)
        for number, (first, last, heights) in enumerate((one, other))
    ]
    forth, back = size_log_odds(pair, PAIR)[0], size_log_odds(pair, PAIR[:, ::-1])[0]
    assert forth == back
    assert (
        SAME_HEIGHT_LOG_ODDS - LOG_ODDS_PER_CHANGE * LARGEST_CHANGE <= forth <= SAME_HEIGHT_LOG_ODDS
    )


def test_no_pairs_no_evidence() -> None:
    """No pairs give an empty result."""
    assert size_log_odds([], np.zeros((0, 2), np.int64)).shape == (0,)
