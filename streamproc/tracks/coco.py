"""COCO-VID: COCO's JSON, with frames and tracks.

The layout is that of CocoVID in https://github.com/open-mmlab/mmtracking (`tools/convert_datasets`)
and of the converters of FairMOT and ByteTrack: `images` have `id`, `video_id` and `frame_id` (or
`frame_index`), `annotations` have `image_id`, `instance_id` or `track_id`, and `bbox` as left, top,
width and height. Frames count from 0 or 1, as the first image says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import ClassFilter, as_number
from streamproc.tracks.table import BoxTable

if TYPE_CHECKING:
    from collections import Counter

    from streamproc.tracks.content import Content

_BOX_NUMBERS = 4


def is_coco(content: Content) -> bool:
    """Whether it is JSON with images and annotations."""
    if not content.head.lstrip().startswith("{"):
        return False
    document = content.document
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def read(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read the annotations of one video."""
    try:
        frames = _frames(content.document)
        names = {
            category["id"]: str(category.get("name", category["id"]))
            for category in content.document.get("categories", [])
        }
        return _table(content.document, frames, names, problems, object_class)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise TracksError(
            f"{content.path}: expected images with id and frame_id, and annotations with image_id, "
            f"instance_id or track_id, and bbox ({type(error).__name__}: {error!s:.100})"
        ) from error


def _frames(document: Any) -> dict[object, int | float | None]:
    """Return the frame's number by the image's id."""
    videos = {image.get("video_id") for image in document["images"]}
    if len(videos) > 1:
        raise ValueError(f"it holds {len(videos)} videos, keep the images of one")
    frames = {}
    for image in document["images"]:
        frame = image["frame_id"] if "frame_id" in image else image["frame_index"]
        frames[image["id"]] = as_number(frame)
    return frames


def _table(
    document: Any,
    frames: dict[object, int | float | None],
    names: dict[object, str],
    problems: Counter[str],
    object_class: int | str | None,
) -> BoxTable:
    wanted = ClassFilter(object_class)
    ids: list[int | float | None] = []
    numbers: list[int | float | None] = []
    rows: list[list[float]] = []
    for annotation in document["annotations"]:
        category = annotation.get("category_id")
        if not wanted.keeps(names.get(category, category)):
            continue
        box = [float(number) for number in annotation["bbox"]]
        if len(box) != _BOX_NUMBERS:
            raise ValueError(f"a bbox has {len(box)} numbers")
        is_instance = "instance_id" in annotation
        ids.append(as_number(annotation["instance_id" if is_instance else "track_id"]))
        numbers.append(frames[annotation["image_id"]])
        rows.append([*box, float(annotation.get("score", 1))])
    problems["boxes-other-class"] += wanted.left_out
    columns = np.array(rows, np.float64).reshape(-1, 5)
    known = [frame for frame in frames.values() if frame is not None]
    return BoxTable(
        ids,
        numbers,
        columns[:, :4],
        columns[:, 4],
        first_frame_number=1 if min(known, default=0) == 1 else 0,
        layout="xywh",
        classes=wanted.seen,
    )
