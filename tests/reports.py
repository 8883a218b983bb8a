"""Small reports, and output folders that hold one."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from streamproc.offline.directory import OutputDirectory
from streamproc.offline.report import GalleryReport, PersonEntry


def report(*ids, similarity=True, **changes):
    """A report on persons of one clip, of unlike vectors if there are any."""
    values = {
        "gallery_id": "clip",
        "title": "clip.mp4",
        "timestamp": datetime(2026, 11, 24, tzinfo=UTC),
        "similarity_threshold": 0.7,
        "persons": tuple(
            PersonEntry(i, f"clip/{i}", "clip.mp4", 9, 0, 8, 0.0, 0.8, 5, 0.5) for i in ids
        ),
    }
    if similarity:
        values |= {
            "embedded_ids": ids,
            "embeddings": np.eye(len(ids), 4, dtype=np.float32),
            "similarity": np.eye(len(ids), dtype=np.float32),
        }
    return GalleryReport(**(values | changes))


def write(folder, *ids, **changes):
    """Write animations and a report on these persons into a folder, and commit them."""
    with OutputDirectory(folder) as out:
        for person_id in ids:
            out.write_webp(person_id, b"webp of %d" % person_id)
        out.write_report(report(*ids, **changes))
        out.commit()
