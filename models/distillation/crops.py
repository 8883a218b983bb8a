"""The crops to learn from, what is known of who is who on them, and how batches are drawn."""

from __future__ import annotations

import io
import math
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKET, VIDEOS = "market1501_train.tar", "people_crops.tar"
PACKED = (192, 96)  # what is kept of a crop: 55 kB

HELD_OUT_PEOPLE = 50  # the last of Market-1501's training identities
HELD_OUT_VIDEOS = (
    "e9544e9816",
    "eeaa3da40e",
    "f2dbd6f559",
    "fd193d838d",
)  # seen nowhere else under another name
HELD_OUT = -2  # in place of a person's number
NOBODY = -1

LINK_SIMILARITY = 0.7  # centred; crops of one frame reach .6 where a scene is crowded
LINK_GAP_FRAMES = 30
TRACKLET_CROPS = 3
LOOKALIKE_SIMILARITY = (
    0.6  # tracklets of different videos above this may be one video under two names
)

CROPS_A_PERSON, SCENES_A_BATCH = 4, 4


@dataclass(frozen=True)
class Crops:
    """All crops.

    `person` counts Market's identities first, then tracklets; `rival` says who surely are two
    people.
    """

    images: torch.Tensor  # (n, 3, 192, 96) uint8
    names: list[str]
    clean: torch.Tensor  # (n, dim), the first teacher's unit features
    scene: np.ndarray  # (n,) 0 is Market, then one number a video
    person: torch.Tensor  # (n,)
    rival: torch.Tensor  # (people, people) bool

    def people_of(self, scene: int) -> Iterator[int]:
        """Numbers of the people with crops to train on in one scene."""
        found = np.unique(self.person.numpy()[self.scene == scene])
        return iter(found[found >= 0].tolist())


def load_images(folder: Path, cache: Path) -> tuple[torch.Tensor, list[str]]:
    """All crops of the archives as uint8 (n, 3, 192, 96), decoded once into `cache`, and their names."""
    names = []
    for archive in (MARKET, VIDEOS):
        with tarfile.open(folder / archive) as tar:
            names += [member.name for member in tar if member.name.endswith(".jpg")]
    if not cache.is_file():
        images = np.stack(
            [image for archive in (MARKET, VIDEOS) for image in _decode(folder / archive)]
        )
        with cache.with_suffix(".part").open("wb") as part:
            np.save(part, images)
        cache.with_suffix(".part").replace(cache)
    return torch.from_numpy(np.load(cache)), names


def _decode(archive: Path) -> Iterator[np.ndarray]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or not member.name.endswith(".jpg"):
                continue
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            yield np.asarray(image.resize(PACKED[::-1], Image.Resampling.BILINEAR)).transpose(
                2, 0, 1
            )


def know(images: torch.Tensor, names: list[str], clean: torch.Tensor) -> Crops:
    """Number scenes and people.

    Market's by the file names, those of the videos by linking crops from frame to frame.

    Market's names are PERSON_cCAMERAsSEQUENCE_FRAME_NN.jpg, the videos' VIDEO_FRAME_NN.jpg.
    """
    parts = [name.removesuffix(".jpg").split("_") for name in names]
    market = np.array([part[1].startswith("c") for part in parts])
    videos = sorted({part[0] for part, known in zip(parts, market, strict=True) if not known})
    scene = np.array(
        [
            0 if known else 1 + videos.index(part[0])
            for part, known in zip(parts, market, strict=True)
        ]
    )
    frame = np.array(
        [0 if known else int(part[1]) for part, known in zip(parts, market, strict=True)]
    )
    identities = sorted({part[0] for part, known in zip(parts, market, strict=True) if known})
    numbers = {name: number for number, name in enumerate(identities[:-HELD_OUT_PEOPLE])}
    person = np.array(
        [
            numbers.get(part[0], HELD_OUT) if known else NOBODY
            for part, known in zip(parts, market, strict=True)
        ]
    )
    centred = centre(clean, clean.mean(0))
    for number, video in enumerate(videos, 1):
        rows = np.flatnonzero(scene == number)
        if video in HELD_OUT_VIDEOS:
            person[rows] = HELD_OUT
            continue
        for tracklet in link(centred[rows].numpy(), frame[rows]):
            person[rows[tracklet]] = person.max() + 1
    return Crops(
        images,
        names,
        clean,
        scene,
        torch.from_numpy(person),
        _rivals(person, scene, frame, centred),
    )


def link(features: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Tracklets of one video: crops of successive frames that are each other's nearest, and near enough."""
    tracklet = np.arange(len(frame))
    frames = np.unique(frame)
    for one, other in pairwise(frames):
        if other - one > LINK_GAP_FRAMES:
            continue
        before, after = np.flatnonzero(frame == one), np.flatnonzero(frame == other)
        similarity = features[before] @ features[after].T
        for i, j in enumerate(similarity.argmax(1)):
            if similarity[:, j].argmax() == i and similarity[i, j] > LINK_SIMILARITY:
                tracklet[after[j]] = tracklet[before[i]]
    found = (np.flatnonzero(tracklet == number) for number in np.unique(tracklet))
    return [rows for rows in found if len(rows) >= TRACKLET_CROPS]


def _rivals(
    person: np.ndarray, scene: np.ndarray, frame: np.ndarray, centred: torch.Tensor
) -> torch.Tensor:
    known = person >= 0
    means = person_means(centred[known], torch.from_numpy(person[known]), int(person.max()) + 1)
    where = np.zeros(len(means), dtype=int)
    where[person[known]] = scene[known]
    market = where == 0
    rival = (where[:, None] != where) & (means @ means.T < LOOKALIKE_SIMILARITY).numpy() | (
        market[:, None] & market
    )
    together = defaultdict(set)
    for number, place, moment in zip(person[known], scene[known], frame[known], strict=True):
        if place:
            together[place, moment].add(number)
    for group in together.values():
        rival[np.ix_(list(group), list(group))] = True
    np.fill_diagonal(rival, val=False)
    return torch.from_numpy(rival)


def person_means(features: torch.Tensor, person: torch.Tensor, count: int) -> torch.Tensor:
    """Unit mean (count, dim) of each person's unit features."""
    return F.normalize(torch.zeros(count, features.shape[1]).index_add_(0, person, features))


def centre(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Unit features less `mean`, unit length again."""
    return F.normalize(F.normalize(features) - mean)


class Batches:
    """Half of a batch from Market, some crops of each of some people; half from a few videos, in pairs of one tracklet.

    Crops of one scene stand together, since telling them apart is what counts.
    """

    def __init__(self, crops: Crops, size: int) -> None:
        person = crops.person.numpy()
        self.people = {
            number: torch.from_numpy(np.flatnonzero(person == number))
            for number in range(person.max() + 1)
        }
        self.market = torch.tensor(list(crops.people_of(0)))
        self.person = crops.person
        rows = (
            np.flatnonzero((crops.scene == scene) & (person != HELD_OUT))
            for scene in range(1, crops.scene.max() + 1)
        )
        self.videos = [torch.from_numpy(row) for row in rows if len(row)]
        self.weights = torch.tensor([math.sqrt(len(video)) for video in self.videos])
        self.market_people = size // 2 // CROPS_A_PERSON
        self.pairs_a_scene = size // 4 // SCENES_A_BATCH

    def draw(self) -> torch.Tensor:
        """Rows of a batch."""
        rows = []
        for number in self.market[torch.randperm(len(self.market))[: self.market_people]].tolist():
            own = self.people[number]
            rows.append(own[torch.randperm(len(own))[:CROPS_A_PERSON]])
        for scene in torch.multinomial(self.weights, SCENES_A_BATCH).tolist():
            video = self.videos[scene]
            anchors = video[torch.randint(len(video), (self.pairs_a_scene,))]
            rows.append(anchors)
            for anchor in anchors.tolist():
                others = self.people.get(int(self.person[anchor]), video)
                rows.append(others[torch.randint(len(others), (1,))])
        return torch.cat(rows)
