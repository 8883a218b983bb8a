"""The crops of the training, who is on them as far as known, and how batches are drawn."""

from __future__ import annotations

import io
import math
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKET = "market1501_train.tar"
VIDEOS = "people_crops.tar"
PACKED = (192, 96)
"""Height and width in which crops are kept in memory: 55 kB each."""

HELD_OUT_PEOPLE = 50
"""The last of Market-1501's training identities."""
HELD_OUT_VIDEOS = ("e9544e9816", "eeaa3da40e", "f2dbd6f559", "fd193d838d")
"""Videos that are not in the set under another name as well."""
HELD_OUT = -2
"""In place of a person's number."""
NOBODY = -1
"""In place of a person's number, if it is not known."""

LINK_SIMILARITY = 0.7
"""Of centred features; crops of two people in one crowded frame reach .6."""
LINK_GAP_FRAMES = 30
TRACKLET_CROPS = 3
LOOKALIKE_SIMILARITY = 0.6
"""Tracklets of different videos above this may be of one video under two names."""

CROPS_A_PERSON = 4
SCENES_A_BATCH = 4


@dataclass(frozen=True)
class Crops:
    """All crops.

    `person` numbers Market's identities first, then tracklets. `distinct` says which of them are
    certainly two people.
    """

    images: torch.Tensor  # (n, 3, 192, 96) uint8
    names: list[str]
    clean: torch.Tensor  # (n, dim), the first teacher's unit features
    scene: np.ndarray  # (n,): 0 for Market, then a number for each video
    person: torch.Tensor  # (n,)
    distinct: torch.Tensor  # (people, people) bool

    def people_of(self, scene: int) -> Iterator[int]:
        """Yield the numbers of the people with crops to train on in one scene."""
        found = np.unique(self.person.numpy()[self.scene == scene])
        return iter(found[found >= 0].tolist())


def load_images(folder: Path, cache: Path) -> tuple[torch.Tensor, list[str]]:
    """Return all crops of the archives as uint8 (n, 3, 192, 96), and their names.

    They are decoded once, into `cache`.
    """
    archives = [folder / MARKET, folder / VIDEOS]
    names = []
    for archive in archives:
        with tarfile.open(archive) as tar:
            names += [member.name for member in tar if member.name.endswith(".jpg")]
    if not cache.is_file():
        images = np.stack(list(chain.from_iterable(_decode(archive) for archive in archives)))
        part = cache.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, images)
        part.replace(cache)
    return torch.from_numpy(np.load(cache)), names


def _decode(archive: Path) -> Iterator[np.ndarray]:
    height, width = PACKED
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or not member.name.endswith(".jpg"):
                continue
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            yield np.asarray(image).transpose(2, 0, 1)


def label_crops(images: torch.Tensor, names: list[str], clean: torch.Tensor) -> Crops:
    """Number scenes and people.

    Market's people are known by the file names, PERSON_cCAMERAsSEQUENCE_FRAME_NN.jpg. Those of the
    videos, VIDEO_FRAME_NN.jpg, are found by linking crops from frame to frame. `clean` are the
    first teacher's unit features (n, dim).
    """
    parts = [name.removesuffix(".jpg").split("_") for name in names]
    market = np.array([part[1].startswith("c") for part in parts])
    identities = sorted({parts[row][0] for row in np.flatnonzero(market)})
    videos = sorted({parts[row][0] for row in np.flatnonzero(~market)})
    scene = np.zeros(len(parts), int)
    frame = np.zeros(len(parts), int)
    person = np.full(len(parts), NOBODY)
    numbers = {name: number for number, name in enumerate(identities[:-HELD_OUT_PEOPLE])}
    for row in np.flatnonzero(market):
        person[row] = numbers.get(parts[row][0], HELD_OUT)
    for row in np.flatnonzero(~market):
        scene[row] = 1 + videos.index(parts[row][0])
        frame[row] = int(parts[row][1])
    centred = centre(clean, clean.mean(0))
    for number, video in enumerate(videos, 1):
        rows = np.flatnonzero(scene == number)
        if video in HELD_OUT_VIDEOS:
            person[rows] = HELD_OUT
            continue
        for tracklet in link(centred[rows].numpy(), frame[rows]):
            person[rows[tracklet]] = person.max() + 1
    distinct = _distinct_people(person, scene, frame, centred)
    return Crops(images, names, clean, scene, torch.from_numpy(person), distinct)


def link(features: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Return the tracklets of one video, each as rows of `features` (n, dim).

    Crops of successive frames are linked if each is the other's nearest, and if they are similar
    enough.
    """
    tracklet = np.arange(len(frame))
    frames = np.unique(frame)
    for one, other in pairwise(frames):
        if other - one > LINK_GAP_FRAMES:
            continue
        before = np.flatnonzero(frame == one)
        after = np.flatnonzero(frame == other)
        similarity = features[before] @ features[after].T
        for i, j in enumerate(similarity.argmax(1)):
            if similarity[:, j].argmax() == i and similarity[i, j] > LINK_SIMILARITY:
                tracklet[after[j]] = tracklet[before[i]]
    found = (np.flatnonzero(tracklet == number) for number in np.unique(tracklet))
    return [rows for rows in found if len(rows) >= TRACKLET_CROPS]


def _distinct_people(
    person: np.ndarray, scene: np.ndarray, frame: np.ndarray, centred: torch.Tensor
) -> torch.Tensor:
    """Return (people, people): whether they are certainly two people.

    They are if both are Market's, if they share a frame, or if their scenes differ and they look
    different.
    """
    known = person >= 0
    means = person_means(centred[known], torch.from_numpy(person[known]), int(person.max()) + 1)
    scene_of = np.zeros(len(means), dtype=int)
    scene_of[person[known]] = scene[known]
    market = scene_of == 0
    unlike = (means @ means.T < LOOKALIKE_SIMILARITY).numpy()
    distinct = (scene_of[:, None] != scene_of) & unlike
    distinct |= market[:, None] & market
    together = defaultdict(set)
    for number, place, moment in zip(person[known], scene[known], frame[known], strict=True):
        if place:
            together[place, moment].add(number)
    for group in together.values():
        distinct[np.ix_(list(group), list(group))] = True
    np.fill_diagonal(distinct, val=False)
    return torch.from_numpy(distinct)


def person_means(features: torch.Tensor, person: torch.Tensor, count: int) -> torch.Tensor:
    """Return the unit mean (count, dim) of each person's unit features."""
    sums = torch.zeros(count, features.shape[1]).index_add_(0, person, features)
    return functional.normalize(sums)


def centre(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Subtract `mean` from the features scaled to unit length, and scale them again."""
    return functional.normalize(functional.normalize(features) - mean)


class Batches:
    """Draws batches: half from Market, half from a few videos.

    Of Market there are some crops of each of some people, of videos pairs of one tracklet. Several
    are of one scene, since telling people of one scene apart is what counts.
    """

    def __init__(self, crops: Crops, size: int) -> None:
        person = crops.person.numpy()
        self.people = {
            number: torch.from_numpy(np.flatnonzero(person == number))
            for number in range(person.max() + 1)
        }
        self.market = torch.tensor(list(crops.people_of(0)))
        self.person = crops.person
        self.videos = []
        for scene in range(1, crops.scene.max() + 1):
            rows = np.flatnonzero((crops.scene == scene) & (person != HELD_OUT))
            if len(rows):
                self.videos.append(torch.from_numpy(rows))
        self.weights = torch.tensor([math.sqrt(len(video)) for video in self.videos])
        self.market_people = size // 2 // CROPS_A_PERSON
        self.pairs_a_scene = size // 4 // SCENES_A_BATCH

    def draw(self) -> torch.Tensor:
        """Return the rows of a batch."""
        rows = []
        chosen = torch.randperm(len(self.market))[: self.market_people]
        for number in self.market[chosen].tolist():
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
