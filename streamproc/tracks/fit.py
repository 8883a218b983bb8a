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
_DIVERGED_PICTURES = 10
"""A box of so many pictures' width or height is a tracker's estimate that has diverged."""
_LEAST_BOXES = 10
"""Fewer say nothing of how a file is meant."""
_MOST = 0.99


def fit_to_video(tracks: TrackSet, *, frame_count: int, width: int, height: int) -> TrackSet:
    """Leave out boxes beyond the video's end or wholly outside its picture, and count them.

    Shares of the picture become pixels. `hints` says in a line each what may be wrong and what to
    try. Raises TracksError where no box is left: tracks of another video.
    """
    if tracks.is_normalised:
        tracks = _in_pixels(tracks, width=width, height=height)
    problems = Counter(tracks.problems)
    kept: list[Track] = []
    for track in tracks.tracks:
        in_time = track.frame_indices < frame_count
        in_picture = _in_picture(track, width=width, height=height)
        sound = _is_sound(track, width=width, height=height)
        problems["frames-beyond-video"] += int(np.count_nonzero(~in_time))
        problems["boxes-diverged"] += int(np.count_nonzero(in_time & ~sound))
        problems["boxes-outside-picture"] += int(np.count_nonzero(in_time & sound & ~in_picture))
        keep = in_time & in_picture & sound
        if keep.any():
            kept.append(_selected(track, keep))
    problems = +problems  # without those that are zero
    box_count = sum(len(track) for track in tracks.tracks)
    hints = [
        *_time_hints(tracks, frame_count),
        *_corner_hints(tracks, width=width, height=height),
        *_picture_hints(problems, box_count, width, height),
    ]
    if box_count and not kept:
        reason = hints[0] if hints else "no box lies in the picture within the video's time"
        raise TracksError(f"{tracks.source}: the tracks do not fit the video: {reason}")
    return replace(tracks, tracks=tuple(kept), problems=problems, hints=(*tracks.hints, *hints))


def _in_pixels(tracks: TrackSet, *, width: int, height: int) -> TrackSet:
    size = np.array([width, height, width, height], np.float32)
    scaled = [replace(track, boxes_xyxy=track.boxes_xyxy * size) for track in tracks.tracks]
    return replace(tracks, tracks=tuple(scaled), is_normalised=False)


def _in_picture(track: Track, *, width: int, height: int) -> BoolArray:
    left, top, right, bottom = track.boxes_xyxy.T
    inside: BoolArray = (left < width) & (top < height) & (right > 0) & (bottom > 0)
    return inside


def _is_sound(track: Track, *, width: int, height: int) -> BoolArray:
    left, top, right, bottom = track.boxes_xyxy.T
    sound: BoolArray = (right - left <= _DIVERGED_PICTURES * width) & (
        bottom - top <= _DIVERGED_PICTURES * height
    )
    return sound


def _selected(track: Track, keep: BoolArray) -> Track:
    if keep.all():
        return track
    return replace(
        track,
        frame_indices=track.frame_indices[keep],
        boxes_xyxy=track.boxes_xyxy[keep],
        confidences=track.confidences[keep],
    )


def _time_hints(tracks: TrackSet, frame_count: int) -> list[str]:
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
    return hints


def _corner_hints(tracks: TrackSet, *, width: int, height: int) -> list[str]:
    """Recognise corners that were read as sizes: then each box is wider than its left edge is far.

    Also many reach out of the picture, which people near its left top corner do not.
    """
    if not tracks.tracks:
        return []
    boxes = np.concatenate([track.boxes_xyxy for track in tracks.tracks])
    left, top, right, bottom = boxes.T
    as_corners = (right - left > left) & (bottom - top > top) & (left >= 0) & (top >= 0)
    outside = (right > width) | (bottom > height)
    if (
        len(boxes) < _LEAST_BOXES
        or as_corners.mean() < _MOST
        or outside.mean() < _MISFIT_SHARE
        or (right - left > width).mean() > 1 - _MOST
    ):
        return []
    hint = (
        "the boxes look like two corners that were read as left, top, width and height: "
        "try --boxes xyxy"
    )
    return [hint]


def _picture_hints(problems: Counter[str], box_count: int, width: int, height: int) -> list[str]:
    outside = problems["boxes-outside-picture"]
    if outside <= _MISFIT_SHARE * box_count:
        return []
    hint = (
        f"{outside} of {box_count} boxes lie outside the {width}x{height} picture: "
        "were the tracks made on a video of another size?"
    )
    return [hint]
