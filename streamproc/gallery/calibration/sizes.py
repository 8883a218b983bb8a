"""What the boxes of two tracks say beside the looks of the two people.

Who is lost and found again in a camera's picture is about as large as before; somebody else may be
of any size. The numbers are from tracks of 27 public videos, cut in two with a gap between, beside
the halves of others who were seen with them: heights change by 4 % from half to half of one track,
by 18 % from one person to another (medians). Time gap, crop quality and size in pixels were tried
there as well and told too little (`models/evidence.py` prints all of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding

    Float64Array = npt.NDArray[np.float64]

END_CROPS = 2
"""So many embedded crops say how large a person was where the track begins or ends."""
ALIKE, SLOPE, LARGEST_CHANGE = 0.55, 4.0, 0.5
"""Log-odds gained where the height is the same, lost for each e-fold of change, and where the change no longer counts:
beyond it there is little to learn from. Of slopes 0 to 8, 4 was the best there with all three sets of weights."""


def size_evidence(
    persons: Sequence[PersonEmbedding], places: npt.NDArray[np.int64]
) -> Float64Array:
    """Log-odds (p,) that pairs are one person, by their heights where one's track ends and the other's begins.

    `places` (p, 2) say whose. 0 where nothing is known: of two videos, tracks that are not one
    after the other, or crops without height.
    """
    involved, inverse = np.unique(places, return_inverse=True)
    own = [persons[i] for i in involved]
    number = {video: i for i, video in enumerate({person.video_id for person in own})}
    video = np.array([number[person.video_id] for person in own], np.int64)
    first = np.array([person.first_frame_index for person in own], np.int64)
    last = np.array([person.last_frame_index for person in own], np.int64)
    begin, end = (np.array([_log_height(person, side) for person in own]) for side in (1, -1))
    one, other = inverse.reshape(-1, 2).T
    earlier, later = np.where(first[one] <= first[other], (one, other), (other, one))
    change = np.abs(end[earlier] - begin[later])
    known = (video[one] == video[other]) & (last[earlier] < first[later]) & np.isfinite(change)
    evidence: Float64Array = np.where(
        known, ALIKE - SLOPE * np.minimum(change, LARGEST_CHANGE), 0.0
    )
    return evidence


def _log_height(person: PersonEmbedding, side: int) -> float:
    """Of the track's first (1) or last (-1) crops; nan where there is none."""
    in_time = sorted(person.crops, key=lambda crop: crop.frame_index)[::side][:END_CROPS]
    heights = [crop.box_xyxy[3] - crop.box_xyxy[1] for crop in in_time]
    return float(np.log(np.median(heights))) if heights and min(heights) > 0 else float("nan")
