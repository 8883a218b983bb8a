"""Make our own OSNet x0.25: distilled from published weights, with what is known of who is who beside it.

    PYTHONPATH=. python models/distill.py --data DATA/reid --teachers B.pt --out FOLDER \
        --phases 128x64:40:3e-3 192x96:45:1.5e-3 256x128:60:8e-4

Each phase is HEIGHTxWIDTH:MINUTES:PEAK_RATE; small crops learn most for the time, the last phase has the size of use.
The student sees the same augmented crops as the teachers. Three losses: direction (cosine to the first teacher's
feature), structure (similarities within the batch, each side's mean subtracted), identity (softmax over the mean
features of people). People are Market-1501's training identities, and tracklets: crops of a video that the first
teacher links from frame to frame; two of one video count as different people only where they share a frame.

FOLDER gets `checkpoint.pt` (for `--resume`, which may be given other minutes), `ema.pth` (averaged weights: what to
evaluate and convert), `pid`, and caches. Progress goes to stdout, with figures on people and videos that are held out.
A stopped process (SIGSTOP) goes on later; its pause does not count as training time.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
import tarfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from PIL import Image

from streamproc.reid.embedder import IMAGENET_MEAN, IMAGENET_STD
from streamproc.reid.osnet import OSNet, OSNetConfig, from_state
from streamproc.reid.weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Network = Callable[[torch.Tensor], torch.Tensor]

MARKET, VIDEOS = "market1501_train.tar", "people_crops.tar"
STUDENT = OSNetConfig((16, 64, 96, 128), 512)  # x0.25
SIZE = (256, 128)  # of use, and of the teachers' input
PACKED = (192, 96)  # what is kept of a crop: 55 kB

HELD_OUT_PEOPLE = 50  # the last of Market-1501's training identities
HELD_OUT_VIDEOS = ("e9544e9816", "eeaa3da40e", "f2dbd6f559", "fd193d838d")  # seen nowhere else under another name
HELD_OUT = -2  # in place of a person's number
NOBODY = -1

LINK_SIMILARITY = 0.7  # centred; crops of one frame reach .6 where a scene is crowded
LINK_GAP_FRAMES = 30
TRACKLET_CROPS = 3
LOOKALIKE_SIMILARITY = 0.6  # tracklets of different videos above this may be one video under two names

CROPS_A_PERSON, SCENES_A_BATCH = 4, 4
RELATION_WEIGHT = 15.0
TEMPERATURE = 0.07
MEMORY_RATE = 0.1
EMA_DECAY = 0.999
GRADIENT_CLIP = 2.0
WARM_UP = 0.02  # of a phase
FINAL_RATE = 0.02  # of its peak
LOG_STEPS = 50
SAVE_S = 120.0
LONGEST_STEP_S = 5.0  # what is longer was a pause


# --- crops and what is known of them


@dataclass(frozen=True)
class Crops:
    """All crops. `person` counts Market's identities first, then tracklets; `rival` says who surely are two people."""

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
        images = np.stack([image for archive in (MARKET, VIDEOS) for image in _decode(folder / archive)])
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
            yield np.asarray(image.resize(PACKED[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def know(images: torch.Tensor, names: list[str], clean: torch.Tensor) -> Crops:
    """Number scenes and people: Market's by the file names, those of the videos by linking crops from frame to frame.

    Market's names are PERSON_cCAMERAsSEQUENCE_FRAME_NN.jpg, the videos' VIDEO_FRAME_NN.jpg.
    """
    parts = [name.removesuffix(".jpg").split("_") for name in names]
    market = np.array([part[1].startswith("c") for part in parts])
    videos = sorted({part[0] for part, known in zip(parts, market, strict=True) if not known})
    scene = np.array([0 if known else 1 + videos.index(part[0]) for part, known in zip(parts, market, strict=True)])
    frame = np.array([0 if known else int(part[1]) for part, known in zip(parts, market, strict=True)])
    identities = sorted({part[0] for part, known in zip(parts, market, strict=True) if known})
    numbers = {name: number for number, name in enumerate(identities[:-HELD_OUT_PEOPLE])}
    person = np.array(
        [numbers.get(part[0], HELD_OUT) if known else NOBODY for part, known in zip(parts, market, strict=True)]
    )
    centred = centre(clean, clean.mean(0))
    for number, video in enumerate(videos, 1):
        rows = np.flatnonzero(scene == number)
        if video in HELD_OUT_VIDEOS:
            person[rows] = HELD_OUT
            continue
        for tracklet in link(centred[rows].numpy(), frame[rows]):
            person[rows[tracklet]] = person.max() + 1
    return Crops(images, names, clean, scene, torch.from_numpy(person), _rivals(person, scene, frame, centred))


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


def _rivals(person: np.ndarray, scene: np.ndarray, frame: np.ndarray, centred: torch.Tensor) -> torch.Tensor:
    known = person >= 0
    means = person_means(centred[known], torch.from_numpy(person[known]), int(person.max()) + 1)
    where = np.zeros(len(means), dtype=int)
    where[person[known]] = scene[known]
    market = where == 0
    rival = (where[:, None] != where) & (means @ means.T < LOOKALIKE_SIMILARITY).numpy() | (market[:, None] & market)
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
        self.people = {number: torch.from_numpy(np.flatnonzero(person == number)) for number in range(person.max() + 1)}
        self.market = torch.tensor(list(crops.people_of(0)))
        self.person = crops.person
        rows = (
            np.flatnonzero((crops.scene == scene) & (person != HELD_OUT)) for scene in range(1, crops.scene.max() + 1)
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


# --- augmentation: images are (B, 3, H, W) float in 0..1 on the training device


def augment(packed: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn uint8 crops into normalised network input; also tell whose identity is still to be seen."""
    x, genuine = _recolour(_move(packed.float() / 255, size))
    x = _occlude(_blur(x))
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x.clamp(0, 1) - mean) / std, genuine


def _chance(x: torch.Tensor, share: float) -> torch.Tensor:
    return torch.rand(len(x), device=x.device) < share


def _move(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Flip, zoom, shift, tilt a little; of some only the upper part is kept, as behind a car or at the frame's edge."""
    n, device = len(x), x.device
    rand, randn = torch.rand(5, n, device=device), torch.randn(2, n, device=device)
    zoom_x = 1 - 0.2 * rand[0] + 0.1 * rand[1]
    zoom_y = zoom_x * (1 + 0.08 * randn[0])
    shift_x, shift_y = 0.2 * (rand[2] - 0.5), 0.16 * (rand[3] - 0.5)
    upper = _chance(x, 0.08)
    kept = 0.55 + 0.4 * rand[4]
    zoom_y, shift_y = torch.where(upper, kept, zoom_y), torch.where(upper, kept - 1, shift_y)
    flip = torch.where(_chance(x, 0.5), -1.0, 1.0)
    tilt = 0.04 * randn[1]
    rows = (flip * zoom_x * tilt.cos(), -tilt.sin(), shift_x, tilt.sin(), zoom_y * tilt.cos(), shift_y)
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 3, *size], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recolour(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Saturation, contrast, brightness, tint; of a few the channels are exchanged, as if in other clothes."""
    saturation, contrast, brightness = (
        (1 + spread * torch.randn(len(x), 1, 1, 1, device=x.device)).clamp(low, high)
        for spread, low, high in ((0.35, 0, 2), (0.2, 0.4, 1.7), (0.2, 0.4, 1.7))
    )
    tint = 0.07 * torch.randn(len(x), 3, 1, 1, device=x.device) * _chance(x, 0.5).view(-1, 1, 1, 1)
    grey = (x * torch.tensor((0.299, 0.587, 0.114), device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x = grey + (x - grey) * saturation
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean) * brightness + tint
    exchanged = _chance(x, 0.12)
    x[exchanged] = x[exchanged][:, torch.randperm(3, device=x.device)]
    return x, ~exchanged


def _blur(x: torch.Tensor) -> torch.Tensor:
    """A quarter of the crops as if taken from far away."""
    some = _chance(x, 0.25)
    if some.any():
        small = F.interpolate(x[some], scale_factor=0.25 + 0.5 * float(torch.rand(())), mode="area")
        x[some] = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x


def _occlude(x: torch.Tensor) -> torch.Tensor:
    """Cover part of some crops by a piece of another crop or a plain colour."""
    other = x.roll(7, 0)
    rows, columns = x.shape[2:]
    for i in _chance(x, 0.35).nonzero().flatten().tolist():
        r = torch.rand(5).tolist()
        height, width = int(rows * (0.1 + 0.3 * r[0])), int(columns * (0.15 + 0.4 * r[1]))
        top, left = int((rows - height) * r[2]), int((columns - width) * r[3])
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        x[i][area] = other[i][area] if r[4] < 0.5 else torch.rand(3, 1, 1, device=x.device)  # noqa: PLR2004 - half
    return x


# --- networks


def load_teacher(path: Path, device: torch.device, folder: Path) -> Network:
    """Return a function from network input to unit features; on the CPU run by onnxruntime, 4 times faster."""
    model = from_state(read_checkpoint(path)).to(device)
    if device.type == "cpu":
        return _onnx_network(model, folder / f"{path.stem}.onnx")

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(model(x).float())

    return run


def _onnx_network(model: OSNet, path: Path) -> Network:
    import onnxruntime

    torch.onnx.export(
        model,
        (torch.zeros(2, 3, *SIZE),),
        path,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: torch.Tensor) -> torch.Tensor:
        parts = [session.run(None, {name: part.numpy()})[0] for part in x.split(16)]
        return F.normalize(torch.from_numpy(np.concatenate(parts)))

    return run


@torch.no_grad()
def embed(network: Network, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Unit features of crops as they are."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for part in images.split(64):
        x = F.interpolate(part.float() / 255, size=SIZE, mode="bilinear", align_corners=False)
        found.append(F.normalize(network(((x - mean) / std).to(device)).float()).cpu())
    return torch.cat(found)


# --- held-out figures


class Check:
    """How well people and videos that are not trained on are told apart, each track by the mean of up to 8 crops.

    Market: tracks are a person in a camera, all pairs. Videos: tracklets halved, against those they share a frame with.
    """

    def __init__(self, crops: Crops) -> None:
        self.rows = np.flatnonzero(crops.person.numpy() == HELD_OUT)
        self.images, self.clean = crops.images[self.rows], crops.clean[self.rows]
        names = [crops.names[row].removesuffix(".jpg").split("_") for row in self.rows]
        scene = crops.scene[self.rows]
        cameras: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in np.flatnonzero(scene == 0):
            cameras[names[i][0], names[i][1][:2]].append(int(i))
        self.market = [rows[:8] for rows in cameras.values()]
        people = np.array([who for who, _ in cameras])
        upper = np.triu(np.ones((len(people), len(people)), dtype=bool), 1)
        same = people[:, None] == people
        self.market_pairs = (upper & same, upper & ~same)
        self._videos(scene, np.array([int(name[1]) if place else 0 for name, place in zip(names, scene, strict=True)]))
        self.market_rows, self.video_rows = scene == 0, scene > 0

    def _videos(self, scene: np.ndarray, frame: np.ndarray) -> None:
        centred = centre(self.clean, self.clean.mean(0)).numpy()
        self.halves: list[list[int]] = []
        seen = []
        for video in np.unique(scene[scene > 0]):
            rows = np.flatnonzero(scene == video)
            for tracklet in link(centred[rows], frame[rows]):
                own = rows[tracklet]
                middle = len(own) // 2
                self.halves += [own[:middle][-4:].tolist(), own[middle:][-4:].tolist()]
                seen += [{(video, moment) for moment in frame[own]}] * 2
        number = np.arange(len(self.halves)) // 2
        together = np.array([[bool(one & other) for other in seen] for one in seen])
        same = number[:, None] == number
        self.video_pairs = (np.triu(same, 1), np.triu(together & ~same, 1))

    def figures(self, model: OSNet, device: torch.device) -> str:
        """Share of true pairs above what 1 % of the others exceed, AUC, and the cosine to the first teacher."""
        features = embed(model.eval(), self.images, device)
        cosine = (features * self.clean).sum(1).numpy()
        parts = []
        for name, tracks, pairs, rows in (
            ("people", self.market, self.market_pairs, self.market_rows),
            ("videos", self.halves, self.video_pairs, self.video_rows),
        ):
            means = F.normalize(torch.stack([features[track].mean(0) for track in tracks]))
            for kind, vectors in (("", means), (" centred", centre(means, means.mean(0)))):
                similarity = (vectors @ vectors.T).numpy()
                right, wrong = similarity[pairs[0]], np.sort(similarity[pairs[1]])
                share = (right > np.quantile(wrong, 0.99)).mean()
                auc = np.searchsorted(wrong, right).mean() / len(wrong)
                parts.append(f"{name}{kind} {share:.3f} {auc:.4f}")
            parts.append(f"cos {cosine[rows].mean():.3f}")
        return "held out (TPR at FPR 1 %, AUC): " + ", ".join(parts)


# --- training


@dataclass(frozen=True)
class Phase:
    """A part of the training: crop size, minutes, peak learning rate."""

    size: tuple[int, int]
    minutes: float
    rate: float

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Read HEIGHTxWIDTH:MINUTES:PEAK_RATE."""
        size, minutes, rate = text.split(":")
        height, width = size.split("x")
        return cls((int(height), int(width)), float(minutes), float(rate))

    def rate_at(self, progress: float) -> float:
        """Warm-up, then a cosine from the peak to a small part of it."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.rate * min(1.0, 0.02 + progress / WARM_UP) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


@dataclass
class Run:
    """Everything that a checkpoint holds."""

    model: OSNet
    ema: OSNet
    optimiser: torch.optim.Optimizer
    memory: torch.Tensor  # (people, dim) centred mean features, as the student sees them
    step: int = 0
    elapsed_s: float = 0.0
    means: dict[str, float] = field(default_factory=dict)  # for the progress line

    def save(self, folder: Path) -> None:
        """Write both files whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": self.memory,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "rng": torch.get_rng_state(),
        }
        averaged = {name: value.cpu() for name, value in self.ema.state_dict().items()}
        averaged = {name: value.contiguous() for name, value in from_state(averaged).state_dict().items()}
        for name, content in (("checkpoint.pt", state), ("ema.pth", averaged)):
            torch.save(content, folder / f"{name}.part")
            (folder / f"{name}.part").replace(folder / name)

    def load(self, path: Path) -> None:
        """Go on where `path` was saved."""
        state = torch.load(path, map_location=self.memory.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.memory, self.step, self.elapsed_s = state["memory"], state["step"], state["elapsed_s"]
        torch.set_rng_state(state["rng"].cpu())

    def note(self, **values: torch.Tensor) -> None:
        """Update the running means of the progress line."""
        for name, value in values.items():
            now = float(value.detach())
            self.means[name] = 0.98 * self.means.get(name, now) + 0.02 * now

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def remember(self, features: torch.Tensor, person: torch.Tensor) -> None:
        """Move the memory of the people in a batch towards their new features."""
        for number in person.unique():
            mean = features[person == number].mean(0)
            self.memory[number] = F.normalize(self.memory[number].lerp(mean, MEMORY_RATE), dim=0)


@dataclass(frozen=True)
class Lesson:
    """A batch with all that the teachers say of it, made in the background while the student learns the last one."""

    images: torch.Tensor  # (B, 3, H, W), augmented and normalised
    person: torch.Tensor  # (B,)
    target: torch.Tensor  # (B, dim) the first teacher's unit features
    relations: torch.Tensor  # (B, B) the teachers' mean similarities, centred


@dataclass(frozen=True)
class Course:
    """What stays the same during a run."""

    crops: Crops
    batches: Batches
    rival: torch.Tensor  # on the training device
    mean: torch.Tensor  # of the first teacher's features
    teachers: list[Network]
    identity_weight: float
    device: torch.device

    def prepare(self, size: tuple[int, int]) -> Lesson:
        """Draw a batch, augment it, ask the teachers (always at the size of use)."""
        rows = self.batches.draw()
        x, genuine = augment(self.crops.images[rows].to(self.device), size)
        person = torch.where(genuine, self.crops.person[rows].to(self.device), NOBODY)
        larger = x if size == SIZE else F.interpolate(x, size=SIZE, mode="bilinear", align_corners=False)
        targets = [teacher(larger) for teacher in self.teachers]
        means = [self.mean, *(target.mean(0) for target in targets[1:])]
        relations = [_relations(target, mean) for target, mean in zip(targets, means, strict=True)]
        return Lesson(x, person, targets[0], torch.stack(relations).mean(0))

    def loss(self, run: Run, lesson: Lesson) -> torch.Tensor:
        """Compare the student with the teachers, and its features with the people's means."""
        x = lesson.images
        with torch.autocast(x.device.type, torch.bfloat16):
            own = run.model(x.contiguous(memory_format=torch.channels_last))
        own = F.normalize(own.float())
        cosine = (own * lesson.target).sum(1).mean()
        relation = (_relations(own, self.mean) - lesson.relations).square().mean()
        identity = self._identity(run, centre(own, self.mean), lesson.person)
        run.note(cos=cosine, relation=relation, identity=identity)
        return (1 - cosine) + RELATION_WEIGHT * relation + self.identity_weight * identity

    def _identity(self, run: Run, features: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        known = person >= 0
        features, person = features[known], person[known]
        counted = self.rival[person]
        counted[torch.arange(len(person)), person] = True
        logits = (features @ run.memory.T.clone() / TEMPERATURE).masked_fill(~counted, -math.inf)
        loss = F.cross_entropy(logits, person)
        run.remember(features.detach(), person)
        return loss


def _relations(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    centred = centre(features, mean)
    return centred @ centred.T


def train(run: Run, course: Course, phases: list[Phase], args: argparse.Namespace) -> None:
    """Train until the phases are over, saving now and then."""
    check = Check(course.crops)
    last = saved = checked = time.monotonic()
    print(check.figures(run.ema, course.device), flush=True)
    background = ThreadPoolExecutor(1)
    begun_s = 0.0
    for phase in phases:
        length_s = phase.minutes * 60
        coming = background.submit(course.prepare, phase.size)
        while run.elapsed_s < begun_s + length_s:
            lesson, coming = coming.result(), background.submit(course.prepare, phase.size)
            rate = phase.rate_at((run.elapsed_s - begun_s) / length_s)
            train_step(run, course, lesson, rate)
            now = time.monotonic()
            run.elapsed_s += min(now - last, LONGEST_STEP_S)
            last = now
            if run.step % LOG_STEPS == 0:
                means = " ".join(f"{name} {value:.4f}" for name, value in run.means.items())
                print(f"{run.elapsed_s:.0f} s step {run.step} {phase.size} {means} rate {rate:.6f}", flush=True)
            if now - saved > SAVE_S:
                run.save(args.out)
                saved = now
            if now - checked > args.check * 60:
                print(check.figures(run.ema, course.device), flush=True)
                checked = last = time.monotonic()
        begun_s += length_s
    run.save(args.out)
    print(check.figures(run.ema, course.device), flush=True)


def train_step(run: Run, course: Course, lesson: Lesson, rate: float) -> None:
    """Teach a batch, move the weights and their average."""
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    loss = course.loss(run, lesson)
    run.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_CLIP)
    run.optimiser.step()
    run.step += 1
    run.average()


def new_run(args: argparse.Namespace, crops: Crops, device: torch.device) -> Run:
    """Begin from random weights, `--init` or `--resume`."""
    model = from_state(read_checkpoint(args.init)) if args.init else OSNet(STUDENT)
    model.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4, fused=True)
    known = crops.person >= 0
    centred = centre(crops.clean, crops.clean.mean(0))
    memory = person_means(centred[known], crops.person[known], len(crops.rival)).to(device)
    run = Run(model, copy.deepcopy(model).eval(), optimiser, memory)
    if args.resume and (args.out / "checkpoint.pt").is_file():
        run.load(args.out / "checkpoint.pt")
    return run


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {MARKET} and {VIDEOS}")
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="OSNet weights, 512-d, the best first")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--phases", type=Phase.parse, nargs="+", required=True, help="HEIGHTxWIDTH:MINUTES:PEAK_RATE")
    parser.add_argument("--init", type=Path, help="start from these weights instead of random ones")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--identity", type=float, default=0.07, help="weight of the identity loss")
    parser.add_argument("--batch", type=int, default=64, help="crops in a batch, a multiple of 32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="for the student, and as many for the teachers")
    parser.add_argument("--check", type=float, default=10, help="minutes between figures on what is held out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train as the command line says."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pid").write_text(f"{os.getpid()}\n")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if args.device == "auto" else args.device)
    images, names = load_images(args.data, args.out / "images.npy")
    teachers = [load_teacher(path, device, args.out) for path in args.teachers]
    cache = args.out / f"{args.teachers[0].stem}.features.npy"
    if not cache.is_file():
        np.save(cache, embed(teachers[0], images, device).numpy())
    crops = know(images, names, torch.from_numpy(np.load(cache)))
    batches = Batches(crops, args.batch)
    print(
        f"{len(images)} crops, {(crops.person == HELD_OUT).sum()} held out, {len(batches.market)} identities, "
        f"{len(crops.rival) - len(batches.market)} tracklets of {(crops.person >= len(batches.market)).sum()} crops, "
        f"{len(batches.videos)} videos; {device}, teachers {[path.name for path in args.teachers]}",
        flush=True,
    )
    mean = crops.clean.mean(0).to(device)
    course = Course(crops, batches, crops.rival.to(device), mean, teachers, args.identity, device)
    train(new_run(args, crops, device), course, args.phases, args)


if __name__ == "__main__":
    main()
