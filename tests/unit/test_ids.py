"""Ids: the same again has the same one, and a run's says which version made its crops."""

from __future__ import annotations

import numpy as np
import pytest

from streamproc import ids
from streamproc.events import ModelInfo, PersonEmbedding, Vector
from streamproc.gallery import Gallery, apply

RUN = {
    "video_id": "v",
    "video_sha256": "a" * 64,
    "tracks_identity": "b" * 64,
    "options": [50, 8, 5, 0, 0.7],
    "weights_sha256": "c" * 64,
}


def person(run_id: str, submitted_at: str, vector: np.ndarray) -> PersonEmbedding:
    """One person of a run, with this unit vector."""
    return PersonEmbedding.make(
        gallery_id="g",
        video_id="v",
        run_id=run_id,
        submitted_at=submitted_at,
        person_id=1,
        person_key="v/1",
        vector=Vector.of(vector.astype(np.float32)),
        model=ModelInfo(name="m", weights_sha256="c" * 64),
        crops=[],
        crop_count=8,
        first_frame_index=0,
        last_frame_index=9,
        first_seen_seconds=0,
        last_seen_seconds=1,
        frames_tracked=10,
    )


@pytest.mark.parametrize("changed", [*RUN, "version"])
def test_a_runs_id_follows_from_all_that_makes_its_crops_and_vectors(changed, monkeypatch) -> None:
    """Each part alone changes the id, the version of the code as well."""
    before = ids.run_id_of(**RUN)
    assert ids.run_id_of(**RUN) == before
    other = dict(RUN)
    if changed == "version":
        monkeypatch.setattr(ids, "CROPS_AND_VECTORS_VERSION", ids.CROPS_AND_VECTORS_VERSION + 1)
    else:
        other[changed] = [50, 8, 5, 0, 0.8] if changed == "options" else "d" * 64
    assert ids.run_id_of(**other) != before


def test_a_video_processed_again_after_an_upgrade_replaces_what_was_said_of_it(monkeypatch) -> None:
    """A version that makes other vectors gives another run, so the matcher takes the new vector."""
    old, new = np.eye(4)[:2]
    gallery = Gallery("g")
    before = person(ids.run_id_of(**RUN), "2026-11-24T12:00:00Z", old)
    monkeypatch.setattr(ids, "CROPS_AND_VECTORS_VERSION", ids.CROPS_AND_VECTORS_VERSION + 1)
    after = person(ids.run_id_of(**RUN), "2026-11-25T12:00:00Z", new)
    for event in (before, after):
        outcome = apply(gallery, event, similarity_threshold=0.7, occurred_at=event.submitted_at)
        gallery.write(outcome.writes)
    np.testing.assert_array_equal(gallery.rows["v/1"].tracklet.vector.numpy(), new)
