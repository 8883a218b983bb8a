"""Writes tracks in every format that streamproc reads, as the tools that are named write them."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.tracks import save_tracks

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.types import Track

SIDES = ("x_min", "y_min", "x_max", "y_max")
Box = tuple[int, int, tuple[float, float, float, float]]


def boxes_of(tracks: tuple[Track, ...]) -> list[Box]:
    """Return (frame from 0, id, xyxy) of every box, by frame."""
    boxes: list[Box] = []
    for track in tracks:
        for frame, box in zip(track.frame_indices, track.boxes_xyxy, strict=True):
            a, b, c, d = (float(side) for side in box)
            boxes.append((int(frame), track.person_id, (a, b, c, d)))
    return sorted(boxes)


def write_canonical(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """An object array of dicts."""
    persons = [
        {
            "person_id": track.person_id,
            "frame_numbers": track.frame_indices,
            "bboxes": track.boxes_xyxy,
        }
        for track in tracks
    ]
    path = folder / "canonical_persons.npz"
    np.savez(path, persons=np.array([*persons, None], object)[:-1])
    return path


def write_own(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """Flat arrays."""
    path = folder / "own.persons.npz"
    save_tracks(path, tracks)
    return path


def write_boxmot(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """MOT text of nine columns."""
    path = folder / "boxmot.txt"
    with path.open("w") as file:
        for frame, person_id, (a, b, c, d) in boxes_of(tracks):
            print(frame + 1, person_id, a, b, c - a, d - b, 0.9, 0, -1, sep=",", file=file)
    return path


def write_ultralytics(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """The folder that holds `labels`, with a file for each frame that has boxes."""
    labels = folder / "track" / "labels"
    labels.mkdir(parents=True)
    lines = defaultdict(list)
    width, height = size
    for frame, person_id, (a, b, c, d) in boxes_of(tracks):
        box = ((a + c) / 2 / width, (b + d) / 2 / height, (c - a) / width, (d - b) / height)
        lines[frame].append(" ".join(f"{number:g}" for number in (0, *box, 0.9, person_id)))
    for frame, of_frame in lines.items():
        (labels / f"vtest_{frame + 1}.txt").write_text("\n".join(of_frame) + "\n")
    return labels.parent


def write_supervision_csv(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """What CSVSink saves with the frame as custom data."""
    path = folder / "supervision.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "x_min",
                "y_min",
                "x_max",
                "y_max",
                "class_id",
                "confidence",
                "tracker_id",
                "class_name",
                "frame_index",
            ]
        )
        for frame, person_id, box in boxes_of(tracks):
            writer.writerow([*box, 0, 0.9, person_id, "person", frame])
    return path


def write_supervision_json(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """What JSONSink saves: numbers as text."""
    rows = []
    for frame, person_id, box in boxes_of(tracks):
        row: dict[str, Any] = dict(zip(SIDES, map(str, box), strict=True))
        row |= {"class_id": "0", "confidence": "0.9", "tracker_id": str(person_id)}
        rows.append(row | {"frame_index": frame})
    path = folder / "supervision.json"
    path.write_text(json.dumps(rows, indent=4))
    return path


def write_cvat(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """CVAT for video 1.1: `outside` where a track pauses."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>"]
    for track in tracks:
        lines.append(f'<track id="{track.person_id}" label="person" source="manual">')
        shown = set(track.frame_indices.tolist())
        for frame, box in zip(track.frame_indices.tolist(), track.boxes_xyxy.tolist(), strict=True):
            a, b, c, d = box
            place = f'xtl="{a}" ytl="{b}" xbr="{c}" ybr="{d}"'
            lines.append(f'<box frame="{frame}" outside="0" occluded="0" keyframe="1" {place}/>')
            if frame + 1 not in shown:
                lines.append(f'<box frame="{frame + 1}" outside="1" keyframe="1" {place}/>')
        lines.append("</track>")
    path = folder / "annotations.xml"
    path.write_text("\n".join([*lines, "</annotations>"]))
    return path


def write_coco(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """COCO-VID, frames from 0."""
    boxes = boxes_of(tracks)
    frames = range(max(frame for frame, _, _ in boxes) + 1)
    images = [
        {"id": frame + 100, "video_id": 1, "frame_id": frame, "file_name": f"{frame}.jpg"}
        for frame in frames
    ]
    annotations = [
        {
            "id": number,
            "image_id": frame + 100,
            "video_id": 1,
            "category_id": 1,
            "instance_id": person_id,
            "bbox": [a, b, c - a, d - b],
        }
        for number, (frame, person_id, (a, b, c, d)) in enumerate(boxes)
    ]
    document = {
        "videos": [{"id": 1, "name": "vtest"}],
        "categories": [{"id": 1, "name": "person"}],
        "images": images,
        "annotations": annotations,
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    return path


def write_kitti(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """KITTI's tracking labels."""
    path = folder / "0000.txt"
    with path.open("w") as file:
        for frame, person_id, box in boxes_of(tracks):
            print(frame, person_id, "Pedestrian 0 0 -10", *box, *["-1"] * 8, file=file)
    return path


def write_deepstream(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """A file a frame, empty where there is nobody."""
    output = folder / "kitti-track-output"
    output.mkdir()
    lines = defaultdict(list)
    for frame, person_id, box in boxes_of(tracks):
        sides = " ".join(f"{side:f}" for side in box)
        zeros = " ".join(["0.0"] * 7)
        lines[frame].append(f"person {person_id} 0.0 0 0.0 {sides} {zeros} 0.900000\n")
    for frame in range(max(lines) + 1):
        (output / f"00_000_{frame:06d}.txt").write_text("".join(lines[frame]))
    return output


def write_dive(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """DIVE's JSON."""
    documents = {}
    for track in tracks:
        features = [
            {"frame": frame, "bounds": box, "keyframe": True, "interpolate": False}
            for frame, box in zip(
                track.frame_indices.tolist(), track.boxes_xyxy.tolist(), strict=True
            )
        ]
        documents[str(track.person_id)] = {
            "id": track.person_id,
            "begin": features[0]["frame"],
            "end": features[-1]["frame"],
            "confidencePairs": [["person", 1.0]],
            "features": features,
        }
    path = folder / "dive.json"
    path.write_text(json.dumps({"version": 2, "tracks": documents, "groups": {}}))
    return path


def write_viame(folder: Path, tracks: tuple[Track, ...], size: tuple[int, int]) -> Path:
    """VIAME's CSV."""
    path = folder / "viame.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["# 1: Detection or Track-id", "2: Video or Image Identifier"])
        writer.writerow(["# metadata", "fps: 10"])
        for frame, person_id, box in boxes_of(tracks):
            writer.writerow([person_id, f"{frame}.png", frame, *box, 0.9, -1, "person", 0.9])
    return path


WRITERS = {
    "canonical-persons": write_canonical,
    "streamproc": write_own,
    "mot": write_boxmot,
    "ultralytics": write_ultralytics,
    "supervision-csv": write_supervision_csv,
    "supervision-json": write_supervision_json,
    "cvat-video": write_cvat,
    "coco-vid": write_coco,
    "kitti-tracking": write_kitti,
    "deepstream-kitti": write_deepstream,
    "dive-json": write_dive,
    "viame-csv": write_viame,
}
