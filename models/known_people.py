"""People of data sets whose identity is known: their pictures as tracks, and galleries drawn from those at random."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamproc.events import CropInfo, ModelInfo, PersonEmbedding, Segments, Vector
from streamproc.gallery.calibration.fitting import KnownGallery
from streamproc.ids import person_key_of
from streamproc.reid.embedder import Embedder, person_vector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CROPS_A_TRACK = 8
CROPS_AT_ONCE = 512
SEGMENTS = 4
SIZE = (128, 256)
MOST_TRACKS = 5
"""Of a person, in galleries where it may have more than two: in some nobody has more than two, in others than three."""

Tracks = dict[tuple[str, str, str], np.ndarray]
"""Unit crop vectors (k, dim) in time order, by identity, camera (or video) and sequence."""
Chosen = list[tuple[str, str, np.ndarray]]
"""Identity, camera, and vectors of the tracks of a gallery."""


# Pictures to tracks.


def as_crop(image: Image.Image) -> np.ndarray:
    """Scale to the network's input, uint8 (256, 128, 3)."""
    return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def embed_all(
    embedder: Embedder, pictures: Mapping[tuple[str, str, str], Sequence[np.ndarray]]
) -> Tracks:
    """Vectors of up to 8 crops of each track, evenly spread."""
    chosen = {
        key: [
            crops[i]
            for i in np.unique(np.linspace(0, len(crops) - 1, CROPS_A_TRACK).round().astype(int))
        ]
        for key, crops in pictures.items()
    }
    flat = [crop for crops in chosen.values() for crop in crops]
    parts = [
        embedder.embed(np.stack(flat[i : i + CROPS_AT_ONCE]))
        for i in range(0, len(flat), CROPS_AT_ONCE)
    ]
    bounds = np.cumsum([len(crops) for crops in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(np.concatenate(parts), bounds), strict=True))


def market_key(name: str, *, by_sequence: bool) -> tuple[str, str, str]:
    """`ID_cCAMERAsSEQ_FRAME_NN.jpg` to identity, camera and sequence ("" where a track is all of a camera)."""
    identity, place = name.split("_")[:2]
    return identity, place[:2], place[2:] if by_sequence else ""


def train_pictures(data: Path) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """Market-1501's training identities, a track for each sequence of a camera."""
    found: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    with tarfile.open(data / "reid" / "market1501_train.tar") as tar:
        members = {Path(member.name).name: member for member in tar if member.name.endswith(".jpg")}
        for name in sorted(members):
            file = tar.extractfile(members[name])
            assert file is not None
            found[market_key(name, by_sequence=True)].append(
                as_crop(Image.open(io.BytesIO(file.read())))
            )
    return dict(found)


def test_pictures(data: Path, *, by_sequence: bool) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """Market-1501's 100 test identities, a track for each camera: the first 8 crops, as in `evaluate.py`.

    `by_sequence`: a track for each sequence of a camera, all its crops, as the training identities
    have.
    """
    found: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    for path in sorted((data / "reid" / "market1501_test100").glob("*.jpg")):
        crops = found[market_key(path.name, by_sequence=by_sequence)]
        if by_sequence or len(crops) < CROPS_A_TRACK:
            crops.append(as_crop(Image.open(path)))
    return dict(found)


def mot_pictures(data: Path) -> dict[str, dict[tuple[str, str, str], list[np.ndarray]]]:
    """MOT17-mini, by sequence: both halves of each person's crops that show at least 30 % of them."""
    galleries = {}
    for folder in sorted((data / "MOT17-mini").iterdir()):
        rows = np.loadtxt(folder / "gt" / "gt.txt", delimiter=",")
        crops: dict[int, list[np.ndarray]] = defaultdict(list)
        for path in sorted((folder / "img1").iterdir()):
            image = Image.open(path).convert("RGB")
            for row in rows[rows[:, 0] == int(path.stem)]:
                x, y, width, height = row[2:6]
                if row[6] == 1 and row[7] == 1 and row[8] >= 0.3 and height >= 50:  # noqa: PLR2004 - people, seen
                    box = (
                        max(x, 0),
                        max(y, 0),
                        min(x + width, image.width),
                        min(y + height, image.height),
                    )
                    crops[int(row[1])].append(as_crop(image.crop(tuple(map(int, box)))))
        tracks = {}
        for person, own in crops.items():
            if len(own) >= SEGMENTS:
                half = len(own) // 2
                tracks[str(person), folder.name, "a"], tracks[str(person), folder.name, "b"] = (
                    own[:half],
                    own[half:],
                )
        galleries[folder.name] = tracks
    return galleries


# Galleries: the product's own events, so that what is fitted is what will run.


def segment_means(vectors: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Unit means of up to 4 consecutive parts, as the pipeline sends them."""
    parts = np.array_split(vectors, min(SEGMENTS, len(vectors)))
    return np.stack([person_vector(part) for part in parts]), [len(part) for part in parts]


def person_of(
    vectors: np.ndarray, *, video_id: str, person_id: int, seen_with: Sequence[int], sha256: str
) -> PersonEmbedding:
    """The event that a track with these crop vectors (k, dim) would give."""
    crop = CropInfo(frame_index=0, pts_seconds=0, box_xyxy=(0, 0, 1, 1), quality=1)
    return PersonEmbedding.make(
        gallery_id="g",
        video_id=video_id,
        run_id="r",
        submitted_at="2026-11-24T00:00:00Z",
        person_id=person_id,
        person_key=person_key_of(video_id, person_id),
        vector=Vector.of(person_vector(vectors)),
        model=ModelInfo(name="calibrated", weights_sha256=sha256),
        crops=[crop] * len(vectors),
        crop_count=len(vectors),
        segments=Segments.of(*segment_means(vectors)),
        first_frame_index=0,
        last_frame_index=0,
        first_seen_seconds=0,
        last_seen_seconds=0,
        frames_tracked=1,
        seen_with=list(seen_with),
    )


def gallery_of(
    tracks: Sequence[tuple[str, str, np.ndarray]], vetoed: np.ndarray, sha256: str
) -> KnownGallery:
    """A gallery of (identity, camera, vectors).

    `vetoed` (n, n): seen apart, counts for other people of one camera.
    """
    persons, identity = {}, {}
    for i, (who, camera, vectors) in enumerate(tracks):
        beside = [
            j
            for j, (other, place, _) in enumerate(tracks)
            if vetoed[i, j] and other != who and place == camera
        ]
        person = person_of(vectors, video_id=camera, person_id=i, seen_with=beside, sha256=sha256)
        persons[person.person_key], identity[person.person_key] = person, who
    return KnownGallery(persons, identity)


def draw(
    tracks: Tracks,
    identities: set[str],
    rng: np.random.Generator,
    sha256: str,
    *,
    kind: str,
    shortened: float = 0.0,
) -> KnownGallery:
    """A gallery at random, of a kind of `KINDS`.

    `shortened`: the share of its tracks that are cut short.
    """
    own = [(*key, vectors) for key, vectors in tracks.items() if key[0] in identities]
    chosen = KINDS[kind][1](own, rng)
    chosen = [
        (who, camera, _shortened(v, rng) if rng.random() < shortened else v)
        for who, camera, v in chosen
    ]
    share = rng.uniform(0, 0.7) * rng.integers(0, 2)
    vetoed = np.triu(rng.random((len(chosen), len(chosen))) < share, 1)
    return gallery_of(chosen, vetoed | vetoed.T, sha256)


def _shortened(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A run of the track's crops, as when a person is soon lost."""
    length = rng.integers(1, len(vectors) + 1)
    start = rng.integers(0, len(vectors) - length + 1)
    return vectors[start : start + length]


def _pieces(most: int, rng: np.random.Generator) -> int:
    """In how many pieces a person is that is in more than one: half of them in two, a quarter in three, and so on."""
    return min(most, 1 + int(rng.geometric(0.5)), MOST_TRACKS)


def _one_camera(tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator) -> Chosen:
    """People who pass one camera, some of them again and again."""
    camera = rng.choice(sorted({camera for _, camera, _, _ in tracks}))
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for who, place, _, vectors in tracks:
        if place == camera:
            by_person[who].append(vectors)
    twice = [who for who, own in by_person.items() if len(own) > 1]
    once = [who for who, own in by_person.items() if len(own) == 1]
    chosen: Chosen = []
    for who in rng.permutation(twice)[: rng.integers(1, 12)]:
        kept = rng.permutation(len(by_person[who]))[: _pieces(len(by_person[who]), rng)]
        chosen += [(who, camera, by_person[who][i]) for i in kept]
    others = max(int(rng.integers(8, 60)) - len(chosen), 0)
    return chosen + [(who, camera, by_person[who][0]) for who in rng.permutation(once)[:others]]


def _two_cameras(
    tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator
) -> Chosen:
    """People who each pass two of several cameras."""
    by_person: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for who, camera, _, vectors in tracks:
        by_person[who][camera].append(vectors)
    seen_twice = [who for who, cameras in by_person.items() if len(cameras) > 1]
    return [
        (who, camera, np.concatenate(by_person[who][camera])[:CROPS_A_TRACK])
        for who in rng.permutation(seen_twice)[: rng.integers(5, 100)]
        for camera in rng.permutation(sorted(by_person[who]))[:2]
    ]


def _in_pieces(tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator) -> Chosen:
    """People who pass several cameras, a share of them more than once.

    2 to 5 tracks, of any camera.

    How many the most broken have differs from gallery to gallery, as trackers do: with 5 in all of
    them a curve takes it for granted that people come back and back, and is too sure of pairs where
    they come back once. For the same reason the number of tracks is drawn, not that of people: else
    the large galleries would be those of the broken.
    """
    by_person: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for who, camera, _, vectors in tracks:
        by_person[who].append((camera, vectors))
    chosen: Chosen = []
    share, most, wanted = (
        rng.uniform(0.1, 1),
        int(rng.integers(2, MOST_TRACKS + 1)),
        int(rng.integers(10, 200)),
    )
    for who in rng.permutation(sorted(by_person)):
        if len(chosen) >= wanted:
            break
        own = by_person[who]
        count = _pieces(min(most, len(own)), rng) if rng.random() < share else 1
        chosen += [(who, *own[i]) for i in rng.permutation(len(own))[:count]]
    return chosen


KINDS = {
    "one camera": (0.5, _one_camera),
    "two cameras": (0.25, _two_cameras),
    "in pieces": (0.25, _in_pieces),
}
"""How galleries are drawn, and by how much all of a kind weigh: the product's usual case is one video."""
