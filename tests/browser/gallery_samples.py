"""Galleries to look at: figures drawn with Pillow, and vectors that agree with their clothes."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from persons import candidate
from PIL import Image, ImageDraw

from streamproc.animation import encode_strip, encode_webp
from streamproc.offline.directory import OutputDirectory
from streamproc.offline.report import GalleryReport, PersonEntry, VetoedPair
from streamproc.types import Crop

THRESHOLD = 0.70
_SHIRTS = [
    (196, 62, 52),
    (46, 92, 170),
    (235, 196, 80),
    (70, 130, 90),
    (120, 80, 150),
    (225, 225, 220),
    (60, 60, 66),
]
_TROUSERS = [(40, 46, 66), (110, 98, 80), (30, 30, 32), (84, 110, 140)]


def figure(look, step, *, aspect_ratio=0.42):
    """One picture of a walking figure, squeezed into (256, 128, 3) as crops are."""
    width = round(256 * aspect_ratio)
    picture = Image.new("RGB", (width, 256), (118 + look % 5 * 6, 122, 116))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 178, width, 256), fill=(150, 146, 138))
    middle, swing = width / 2, math.sin(step * 0.8) * width * 0.2
    shirt, trousers = _SHIRTS[look % len(_SHIRTS)], _TROUSERS[look // 2 % len(_TROUSERS)]
    draw.line(
        (middle, 140, middle - swing, 240),
        fill=tuple(c * 3 // 4 for c in trousers),
        width=round(width * 0.17),
    )
    draw.line((middle, 140, middle + swing, 240), fill=trousers, width=round(width * 0.17))
    draw.rounded_rectangle((middle - width * 0.21, 62, middle + width * 0.21, 150), 16, fill=shirt)
    draw.line(
        (middle, 78, middle - swing * 1.3, 150),
        fill=tuple(c * 4 // 5 for c in shirt),
        width=round(width * 0.11),
    )
    draw.ellipse((middle - 17, 22, middle + 17, 62), fill=(214, 172, 140))
    draw.pieslice((middle - 18, 20, middle + 18, 56), 180, 360, fill=(58, 42, 32))
    return np.asarray(picture.resize((128, 256), Image.Resampling.BILINEAR))


def walk(person_id, look, count=12, *, aspect_ratio=0.42):
    """`count` crops of one walking figure."""
    box = (0.0, 0.0, 100.0 * aspect_ratio, 100.0)
    return [
        Crop(
            person_id,
            i,
            4 * i,
            0.4 * i,
            box,
            0.8,
            aspect_ratio,
            figure(look, i, aspect_ratio=aspect_ratio),
        )
        for i in range(count)
    ]


def looks_alike(looks, seed=7):
    """Unit rows (N, 32) and their cosines (N, N), spread as OSNet's are.

    They are about .9 for one look, and about .55 to .7 for two.
    """
    random = np.random.default_rng(seed)
    everyone = random.normal(size=32)
    own = {look: random.normal(size=32) for look in sorted(set(looks))}
    rows = np.stack([1.3 * everyone + own[look] + 0.28 * random.normal(size=32) for look in looks])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, 1.0)
    return rows, cosines.astype(np.float32)


def entry(person_id, place, *, video_name="entrance.mp4", webp=None, webp_error=None):
    """A person who is seen for some seconds, the later the higher `place` is."""
    first = 11 * place + place % 3 * 7
    frames = 25 + 17 * place % 90
    return PersonEntry(
        id=person_id,
        person_key=person_id if isinstance(person_id, str) else f"v/{person_id}",
        video_name=video_name,
        frames_tracked=frames,
        first_frame_index=first,
        last_frame_index=first + frames - 1,
        first_seen_seconds=first / 10,
        last_seen_seconds=(first + frames - 1) / 10,
        crop_count=12,
        best_quality=0.5 + place % 5 / 10,
        webp=webp,
        webp_error=webp_error,
    )


def pairs_of(cosines, entries):
    """Pairs above the threshold: candidates, and those vetoed since both are seen at once."""
    candidates, vetoed = [], []
    for i, j in zip(*np.triu_indices(len(entries), 1), strict=True):
        if cosines[i, j] <= THRESHOLD:
            continue
        a, b = entries[i], entries[j]
        both = (
            min(a.last_frame_index, b.last_frame_index)
            - max(a.first_frame_index, b.first_frame_index)
            + 1
        )
        similarity = float(cosines[i, j])
        if a.person_key.rpartition("/")[0] == b.person_key.rpartition("/")[0] and both >= 3:
            vetoed.append(VetoedPair((a.person_key, b.person_key), similarity))
        else:
            candidates.append(candidate(a.person_key, b.person_key, similarity))
    return tuple(candidates), tuple(vetoed)


def report_of(entries, *, looks=None, title="entrance.mp4", notices=(), **changes):
    """A report with similarities by `looks`, or with none where it is None."""
    ids = tuple(person.id for person in entries)
    values = {
        "gallery_id": title.removesuffix(".mp4"),
        "title": title,
        "timestamp": datetime(2026, 11, 24, 9, 30, 12, tzinfo=UTC),
        "similarity_threshold": THRESHOLD,
        "persons": tuple(entries),
        "notices": notices,
        "run": {"counts": {"persons": len(entries)}},
    }
    if looks is not None:
        rows, cosines = (
            looks_alike(looks)
            if looks
            else (np.zeros((0, 32), np.float32), np.zeros((0, 0), np.float32))
        )
        candidates, vetoed = pairs_of(cosines, entries)
        values |= {
            "embedded_ids": ids,
            "embeddings": rows,
            "similarity": cosines,
            "candidates": candidates,
            "vetoed_pairs": vetoed,
            "model": {
                "name": "osnet_x0_25_ours",
                "architecture": "osnet_x0_25",
                "weights_sha256": "3f9a1c07" * 8,
            },
        }
    return GalleryReport(**(values | changes))


def write_gallery(folder, looks, *, ids=None, video_name="entrance.mp4", **changes):
    """Write a gallery of one animated figure a look; returns its report."""
    ids = ids or [i + 1 for i in range(len(looks))]
    with OutputDirectory(folder) as out:
        entries = []
        for place, (person_id, look) in enumerate(zip(ids, looks, strict=True)):
            number = person_id if isinstance(person_id, int) else place
            ratio = (0.42, 0.36, 0.5)[place % 3]
            crops = walk(number, look, aspect_ratio=ratio)
            made = entry(
                person_id,
                place,
                video_name=video_name,
                webp=out.write_webp(number, encode_webp(crops)),
            )
            strip = out.write_strip(number, encode_strip(crops[:8]))
            entries.append(replace(made, crops_webp=strip))
        report = report_of(entries, looks=looks, **changes)
        out.write_report(report)
        out.commit()
    return report
