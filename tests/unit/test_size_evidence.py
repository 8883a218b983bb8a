"""What sizes say of a pair: who is found again is as large as when last seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import person

from streamproc.events import CropInfo
from streamproc.gallery.calibration.sizes import ALIKE, LARGEST_CHANGE, SLOPE, size_evidence

PAIR = np.array([[0, 1]])


def seen(number, first, last, *heights, video_id="v"):
    """A person seen from frame `first` to `last`, in boxes of these heights, spread over that time; best first."""
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
    return size_evidence([one, other], PAIR)[0]


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
    assert of(one, other) == pytest.approx(ALIKE)


def test_another_height_speaks_against_it_up_to_a_limit() -> None:
    changes = [
        of(seen(1, 0, 90, 100), seen(2, 100, 190, 100 * np.exp(change)))
        for change in (-0.1, 0.1, 0.2, 0.5, 3)
    ]
    assert changes == pytest.approx(
        [ALIKE - SLOPE * c for c in (0.1, 0.1, 0.2, 0.5, LARGEST_CHANGE)]
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
    assert of(seen(1, 0, 90, 100), other) == 0


tracks = st.builds(
    lambda first, length, heights: (first, first + length, heights),
    st.integers(0, 300),
    st.integers(0, 100),
    st.lists(st.floats(1, 1000), min_size=1, max_size=8),
)


@given(tracks, tracks)
def test_it_is_the_same_from_both_ends(one, other) -> None:
    pair = [
        seen(number, first, last, *heights)
        for number, (first, last, heights) in enumerate((one, other))
    ]
    forth, back = size_evidence(pair, PAIR)[0], size_evidence(pair, PAIR[:, ::-1])[0]
    assert forth == back
    assert ALIKE - SLOPE * LARGEST_CHANGE <= forth <= ALIKE


def test_no_pairs_no_evidence() -> None:
    assert size_evidence([], np.zeros((0, 2), np.int64)).shape == (0,)
