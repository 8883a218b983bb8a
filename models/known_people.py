"""People of data sets whose identity is known: their tracks, and galleries drawn from these.

A track here is a row of pictures of one person by one camera. Galleries are made of the product's
own events, so that what is fitted on them is what runs later.
"""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from streamproc.events import CropInfo, ModelInfo, PersonEmbedding, Segments, Vector
from streamproc.gallery.calibration.fitting import KnownGallery
from streamproc.ids import person_key_of
from streamproc.reid.embedder import Embedder, person_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CROPS_A_TRACK = 8
CROPS_AT_ONCE = 512
SEGMENTS = 4
SIZE = (128, 256)
MOST_TRACKS = 5
"""The most tracks of a person, in galleries where a person may have more than two."""
LEAST_VISIBLE = 0.3
LEAST_HEIGHT_PX = 50

TrackKey = tuple[str, str, str]
"""Identity, camera (or video) and sequence."""
Pictures = dict[TrackKey, list[np.ndarray]]
"""The pictures of tracks in time order, uint8 (256, 128, 3) each."""
Tracks = dict[TrackKey, np.ndarray]
"""The unit crop vectors (k, dim) of tracks in time order."""
Track = tuple[str, str, str, np.ndarray]
"""One track of `Tracks`: identity, camera, sequence and vectors."""
Chosen = list[tuple[str, str, np.ndarray]]
"""The tracks of a gallery: identity, camera and vectors."""


# Pictures to tracks.


def as_crop(image: Image.Image) -> np.ndarray:
    """Scale to the network's input, uint8 (256, 128, 3)."""
    return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def evenly_spread(count: int) -> np.ndarray:
    """Return the positions of up to 8 of `count` crops."""
    return np.unique(np.linspace(0, count - 1, CROPS_A_TRACK).round().astype(int))


def embed_all(embedder: Embedder, pictures: Mapping[TrackKey, Sequence[np.ndarray]]) -> Tracks:
    """Embed up to 8 pictures of each track, evenly spread."""
    chosen = {key: [crops[i] for i in evenly_spread(len(crops))] for key, crops in pictures.items()}
    all_crops: list[np.ndarray] = []
    for crops in chosen.values():
        all_crops += crops
    vectors = [
        embedder.embed(np.stack(all_crops[start : start + CROPS_AT_ONCE]))
        for start in range(0, len(all_crops), CROPS_AT_ONCE)
    ]
    bounds = np.cumsum([len(crops) for crops in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(np.concatenate(vectors), bounds), strict=True))


def market_key(name: str, *, by_sequence: bool) -> TrackKey:
    """Return the key of a picture of Market-1501 by its file name, `ID_cCAMERAsSEQ_FRAME_NN.jpg`.

    The sequence is "" where a track is all of a camera.
    """
    identity, place = name.split("_")[:2]
    return identity, place[:2], place[2:] if by_sequence else ""


def train_pictures(data: Path) -> Pictures:
    """Return Market-1501's training identities, a track for each sequence of a camera."""
    found: Pictures = defaultdict(list)
    with tarfile.open(data / "reid" / "market1501_train.tar") as tar:
        members = {Path(member.name).name: member for member in tar if member.name.endswith(".jpg")}
        for name in sorted(members):
            file = tar.extractfile(members[name])
            assert file is not None
            picture = as_crop(Image.open(io.BytesIO(file.read())))
            found[market_key(name, by_sequence=True)].append(picture)
    return dict(found)


def test_pictures(data: Path, *, by_sequence: bool) -> Pictures:
    """Return Market-1501's 100 test identities.

    There is a track for each camera with its first 8 crops, as in `evaluate.py`, or with
    `by_sequence` one for each sequence of a camera with all its crops, as for training identities.
    """
    found: Pictures = defaultdict(list)
    for path in sorted((data / "reid" / "market1501_test100").glob("*.jpg")):
        crops = found[market_key(path.name, by_sequence=by_sequence)]
        if by_sequence or len(crops) < CROPS_A_TRACK:
            crops.append(as_crop(Image.open(path)))
    return dict(found)


def mot_pictures(data: Path) -> dict[str, Pictures]:
    """Return MOT17-mini by sequence: both halves of each person's visible crops, as two tracks."""
    galleries = {}
    for folder in sorted((data / "MOT17-mini").iterdir()):
        tracks: Pictures = {}
        for person, crops in _mot_crops(folder).items():
            if len(crops) >= SEGMENTS:
                half = len(crops) // 2
                tracks[str(person), folder.name, "a"] = crops[:half]
                tracks[str(person), folder.name, "b"] = crops[half:]
        galleries[folder.name] = tracks
    return galleries


def _mot_crops(folder: Path) -> dict[int, list[np.ndarray]]:
    """Return the crops of each person of one MOT sequence, in time order."""
    rows = np.loadtxt(folder / "gt" / "gt.txt", delimiter=",")
    crops: dict[int, list[np.ndarray]] = defaultdict(list)
    for path in sorted((folder / "img1").iterdir()):
        image = Image.open(path).convert("RGB")
        for row in rows[rows[:, 0] == int(path.stem)]:
            _, person, x, y, width, height, counts, kind, visible = row[:9]
            is_pedestrian = counts == 1 and kind == 1
            if is_pedestrian and visible >= LEAST_VISIBLE and height >= LEAST_HEIGHT_PX:
                right = min(x + width, image.width)
                bottom = min(y + height, image.height)
                box = (int(max(x, 0)), int(max(y, 0)), int(right), int(bottom))
                crops[int(person)].append(as_crop(image.crop(box)))
    return crops


# Tracks to galleries.


def segment_means(vectors: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the unit means of up to 4 consecutive parts, as the pipeline sends them."""
    parts = np.array_split(vectors, min(SEGMENTS, len(vectors)))
    return np.stack([person_vector(part) for part in parts]), [len(part) for part in parts]


def person_of(
    vectors: np.ndarray, *, video_id: str, person_id: int, seen_with: Sequence[int], sha256: str
) -> PersonEmbedding:
    """Return the event that a track with these crop vectors (k, dim) would give.

    Frames and boxes of its crops are not known: the boxes have one height, all in frame 0.
    """
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
    """Make a gallery of tracks given as (identity, camera, vectors).

    `vetoed` (n, n) bool: seen in the same frames; it counts for different people of one camera.
    """
    tracklets = {}
    identity = {}
    for i, (who, camera, vectors) in enumerate(tracks):
        beside = [
            j
            for j, (other, place, _) in enumerate(tracks)
            if vetoed[i, j] and other != who and place == camera
        ]
        tracklet = person_of(vectors, video_id=camera, person_id=i, seen_with=beside, sha256=sha256)
        tracklets[tracklet.person_key] = tracklet
        identity[tracklet.person_key] = who
    return KnownGallery(tracklets, identity)


def draw(
    tracks: Tracks,
    identities: set[str],
    rng: np.random.Generator,
    sha256: str,
    *,
    kind: str,
    shortened: float = 0.0,
) -> KnownGallery:
    """Draw a gallery of a kind of `KINDS` at random; a share of its tracks is `shortened`."""
    choose = KINDS[kind].choose
    return draw_by(choose, tracks, identities, rng, sha256, shortened=shortened)


def draw_by(
    choose: Callable[[list[Track], np.random.Generator], Chosen],
    tracks: Tracks,
    identities: set[str],
    rng: np.random.Generator,
    sha256: str,
    *,
    shortened: float = 0.0,
) -> KnownGallery:
    """Draw a gallery whose tracks `choose` takes, as `draw` does."""
    own = [(*key, vectors) for key, vectors in tracks.items() if key[0] in identities]
    chosen = []
    for who, camera, vectors in choose(own, rng):
        if rng.random() < shortened:
            chosen.append((who, camera, _shortened(vectors, rng)))
        else:
            chosen.append((who, camera, vectors))
    share = rng.uniform(0, 0.7) * rng.integers(0, 2)
    vetoed = np.triu(rng.random((len(chosen), len(chosen))) < share, 1)
    return gallery_of(chosen, vetoed | vetoed.T, sha256)


def _shortened(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return some consecutive crops of a track, as when a person is soon lost."""
    length = rng.integers(1, len(vectors) + 1)
    start = rng.integers(0, len(vectors) - length + 1)
    return vectors[start : start + length]


def _pieces(most: int, rng: np.random.Generator) -> int:
    """Draw how many tracks a person has that has several: 2 for a half, 3 for a quarter, ..."""
    return min(most, 1 + int(rng.geometric(0.5)), MOST_TRACKS)


def _one_camera(tracks: list[Track], rng: np.random.Generator) -> Chosen:
    """Choose people who pass one camera, some of them several times."""
    camera = rng.choice(sorted({camera for _, camera, _, _ in tracks}))
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for who, place, _, vectors in tracks:
        if place == camera:
            by_person[who].append(vectors)
    several = [who for who, own in by_person.items() if len(own) > 1]
    once = [who for who, own in by_person.items() if len(own) == 1]
    chosen: Chosen = []
    for who in rng.permutation(several)[: rng.integers(1, 12)]:
        kept = rng.permutation(len(by_person[who]))[: _pieces(len(by_person[who]), rng)]
        chosen += [(who, camera, by_person[who][i]) for i in kept]
    others = max(int(rng.integers(8, 60)) - len(chosen), 0)
    return chosen + [(who, camera, by_person[who][0]) for who in rng.permutation(once)[:others]]


def _two_cameras(tracks: list[Track], rng: np.random.Generator) -> Chosen:
    """Choose people who each pass two of several cameras."""
    by_person: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for who, camera, _, vectors in tracks:
        by_person[who][camera].append(vectors)
    by_several = [who for who, cameras in by_person.items() if len(cameras) > 1]
    chosen: Chosen = []
    for who in rng.permutation(by_several)[: rng.integers(5, 100)]:
        for camera in rng.permutation(sorted(by_person[who]))[:2]:
            vectors = np.concatenate(by_person[who][camera])[:CROPS_A_TRACK]
            chosen.append((who, camera, vectors))
    return chosen


def _in_pieces(tracks: list[Track], rng: np.random.Generator) -> Chosen:
    """Choose people who pass several cameras, a share of them with 2 to 5 tracks, of any camera.

    The most tracks of a person differ from gallery to gallery, as trackers do: if it were 5 in all
    of them, the curve would expect people to come back often, and be too sure of pairs where they
    come back once. The number of tracks is drawn and not that of people, since else the galleries
    with the most tracks a person would also be the largest.
    """
    by_person: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for who, camera, _, vectors in tracks:
        by_person[who].append((camera, vectors))
    share = rng.uniform(0.1, 1)
    most = int(rng.integers(2, MOST_TRACKS + 1))
    wanted = int(rng.integers(10, 200))
    chosen: Chosen = []
    for who in rng.permutation(sorted(by_person)):
        if len(chosen) >= wanted:
            break
        own = by_person[who]
        count = _pieces(min(most, len(own)), rng) if rng.random() < share else 1
        chosen += [(who, *own[i]) for i in rng.permutation(len(own))[:count]]
    return chosen


class Kind(NamedTuple):
    """A kind of gallery: its share of the total weight of pairs, and how its tracks are chosen."""

    share: float
    choose: Callable[[list[Track], np.random.Generator], Chosen]


KINDS = {
    "one camera": Kind(0.5, _one_camera),
    "two cameras": Kind(0.25, _two_cameras),
    "in pieces": Kind(0.25, _in_pieces),
}
"""The usual case of the product is one video, so that kind has the largest share."""
