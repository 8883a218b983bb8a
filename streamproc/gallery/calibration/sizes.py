"""What the heights of two tracks' boxes tell of whether they are one person.

A person who is lost and found again in the picture of one camera is about as tall in pixels as
before; another person may be of any height. The numbers below are from tracks of 27 public videos,
each cut in two with a gap between, beside the halves of others who were seen with them: from half
to half of one track the height changes by 4 %, from one person to another by 18 % (medians). Time
gap, crop quality and height in pixels were tried there as well and told too little
(`models/evidence.py` prints all of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]

END_CROPS = 2
"""The height at the beginning or end of a track is the median of so many embedded crops."""
SAME_HEIGHT_LOG_ODDS = 0.55
"""Log-odds gained where the height has not changed."""
LOG_ODDS_PER_CHANGE = 4.0
"""Log-odds lost for a change of the height by a factor e. Of 0 to 8, 4 was the best on those tracks
with all three sets of weights."""
LARGEST_CHANGE = 0.5
"""Larger changes (of the logarithm) count as this one: there were few to learn from."""


def size_log_odds(tracklets: Sequence[PersonEmbedding], positions: Int64Array) -> Float64Array:
    """Return the log-odds (p,) that pairs are one person, by heights where they meet in time.

    `positions` (p, 2) say which tracklets the pairs are. The height at the end of the earlier one
    is compared with that at the beginning of the later one. 0 where nothing is known: tracklets of
    two videos, tracklets that are not one after the other, or crops without height.
    """
    involved, inverse = np.unique(positions, return_inverse=True)
    own = [tracklets[i] for i in involved]
    video_ids = dict.fromkeys(tracklet.video_id for tracklet in own)
    number = {video_id: i for i, video_id in enumerate(video_ids)}
    video = np.array([number[tracklet.video_id] for tracklet in own], np.int64)
    first = np.array([tracklet.first_frame_index for tracklet in own], np.int64)
    last = np.array([tracklet.last_frame_index for tracklet in own], np.int64)
    begin = np.array([_log_height(tracklet, at_end=False) for tracklet in own])
    end = np.array([_log_height(tracklet, at_end=True) for tracklet in own])
    one, other = inverse.reshape(-1, 2).T
    earlier, later = np.where(first[one] <= first[other], (one, other), (other, one))
    change = np.abs(end[earlier] - begin[later])
    is_known = (video[one] == video[other]) & (last[earlier] < first[later]) & np.isfinite(change)
    lost = LOG_ODDS_PER_CHANGE * np.minimum(change, LARGEST_CHANGE)
    log_odds: Float64Array = np.where(is_known, SAME_HEIGHT_LOG_ODDS - lost, 0.0)
    return log_odds


def _log_height(tracklet: PersonEmbedding, *, at_end: bool) -> float:
    """Return the logarithm of the height at one end of the track; nan where it is not known."""
    in_time = sorted(tracklet.crops, key=lambda crop: crop.frame_index)
    nearest = in_time[-END_CROPS:] if at_end else in_time[:END_CROPS]
    heights = [crop.box_xyxy[3] - crop.box_xyxy[1] for crop in nearest]
    if not heights or min(heights) <= 0:
        return float("nan")
    return float(np.log(np.median(heights)))
