"""Fitting tracks to the video they are said to be of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError

if TYPE_CHECKING:
    from streamproc.types import BoolArray, Track, TrackSet

_MISFIT_SHARE = 0.05
"""From this share of boxes outside the picture on, the tracks may be of another video."""


def fit_to_video(tracks: TrackSet, *, frame_count: int, width: int, height: int) -> TrackSet:
    """Leave out boxes beyond the video's end or wholly outside its picture, and count them.

    `hints` says in a line each what may be wrong and what to try. Raises TracksError where no box
    is left: tracks of another video.
    """
    problems = Counter(tracks.problems)
    kept: list[Track] = []
    for track in tracks.tracks:
        in_time = track.frame_indices < frame_count
        in_picture = _in_picture(track, width=width, height=height)
        problems["frames-beyond-video"] += int(np.count_nonzero(~in_time))
        problems["boxes-outside-picture"] += int(np.count_nonzero(in_time & ~in_picture))
        if (in_time & in_picture).any():
            kept.append(_selected(track, in_time & in_picture))
    problems = +problems  # without those that are zero
    box_count = sum(len(track) for track in tracks.tracks)
    hints = [
        *_time_hints(tracks, problems, frame_count),
        *_picture_hints(problems, box_count, width, height),
    ]
    if box_count and not kept:
        reason = hints[0] if hints else "no box lies in the picture within the video's time"
        raise TracksError(f"{tracks.source}: the tracks do not fit the video: {reason}")
    return replace(tracks, tracks=tuple(kept), problems=problems, hints=(*tracks.hints, *hints))


def _in_picture(track: Track, *, width: int, height: int) -> BoolArray:
    left, top, right, bottom = track.boxes_xyxy.T
    inside: BoolArray = (left < width) & (top < height) & (right > 0) & (bottom > 0)
    return inside


def _selected(track: Track, keep: BoolArray) -> Track:
    if keep.all():
        return track
    return replace(
        track,
        frame_indices=track.frame_indices[keep],
        boxes_xyxy=track.boxes_xyxy[keep],
        confidences=track.confidences[keep],
    )


def _time_hints(tracks: TrackSet, problems: Counter[str], frame_count: int) -> list[str]:
    hints = []
    last = max((int(track.frame_indices[-1]) for track in tracks.tracks), default=-1)
    if last == frame_count:
        hints.append(
            f"the last box is in frame {last}, one past the video's last ({frame_count - 1}): "
            "the frame numbers may start at 1, try --first-frame-number 1"
        )
    elif last > frame_count:
        hints.append(
            f"boxes reach frame {last} but the video has {frame_count} frames: is it the right "
            "video, and are --first-frame-number and --frame-stride right?"
        )
    if problems["frames-before-video"]:
        hints.append(
            "some frame numbers lie before the first one: the file may start at 0, "
            "try --first-frame-number 0"
        )
    return hints


def _picture_hints(problems: Counter[str], box_count: int, width: int, height: int) -> list[str]:
    outside = problems["boxes-outside-picture"]
    if outside <= _MISFIT_SHARE * box_count:
        return []
    hint = (
        f"{outside} of {box_count} boxes lie outside the {width}x{height} picture: "
        "were the tracks made on a video of another size?"
    )
    return [hint]
