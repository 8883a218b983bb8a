"""The 12 pairs of PETS come out whatever format its tracks are in."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import track_writers

from streamproc import replay
from streamproc.tracks import load_tracks

PICTURE = (768, 576)


@pytest.fixture(scope="module")
def pets(shared):
    """The video, its tracks, and the 12 pairs that are one person."""
    data = shared / "data"
    identity = json.loads((data / "gt" / "PETS09-S2L1.identity.json").read_text())
    people = {int(track): person for track, person in identity["track_to_person"].items()}
    pairs = {(a, b) for a, b in combinations(sorted(people), 2) if people[a] == people[b]}
    tracks = load_tracks(data / "gt" / "PETS09-S2L1.gt.txt").tracks
    assert len(pairs) == 12
    return data / "videos" / "vtest.avi", tracks, pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", track_writers.WRITERS)
def test_the_tracks_of_pets_give_the_same_12_pairs_in_each_format(pets, tmp_path, name) -> None:
    """Written as each tool writes them, recognised, and read, the tracks give the same pairs."""
    video, tracks, pairs = pets
    path = track_writers.WRITERS[name](tmp_path, tracks, PICTURE)
    result = replay(video, persons=path)
    found = {
        tuple(sorted(person.person_id for person in candidate.persons))
        for candidate in result.candidates
    }
    assert found == pairs
