r"""Make our own OSNet x0.25: from random initialisation, distilled from published weights.

    PYTHONPATH=. python models/distill.py --data DATA/reid --teachers B.pt --out FOLDER \
        --phases PHASE...

Teacher and student see the same augmented crop. They have the same architecture, so besides the
feature, the maps after each of the six OSNet blocks are compared ("hints": Romero et al., FitNets,
ICLR 2015). At first each part of the student is given the teacher's map, so that all parts learn at
once. Then the student runs from the pixels to the feature. Further losses are direction (cosine to
the first teacher's feature), structure (similarities within the batch, each side's mean
subtracted), and optionally identity (softmax over the mean features of people: Market-1501's
training identities, and tracklets, which are crops of a video that the first teacher links from
frame to frame).

Each phase is HEIGHTxWIDTH:MINUTES:PEAK_RATE, followed by `:forced` if parts are given the teacher's
maps, or by `:fixed` if batch norm uses its running statistics, as in use. Small crops teach most in
the same time.

FOLDER gets `checkpoint.pt` (for `--resume`, which may be given other phases), `ema.pth` (averaged
weights: the ones to evaluate and convert), `pid`, and caches. Progress is printed to stdout, with
metrics on people and videos that are held out. A process stopped by SIGSTOP can go on later; the
pause does not count as training time.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from distillation.augmentation import augment
from distillation.check import Check
from distillation.crops import (
    HELD_OUT,
    MARKET,
    NOBODY,
    VIDEOS,
    Batches,
    centre,
    label_crops,
    load_images,
    person_means,
)
from distillation.networks import Hint, Muon, embed, load_teacher, parts
from torch import nn
from torch.nn import functional

from streamproc.networks.weights import read_checkpoint
from streamproc.reid.osnet import OSNet, OSNetConfig, from_state

if TYPE_CHECKING:
    from distillation.crops import Crops
    from distillation.networks import Teacher

STUDENT = OSNetConfig((16, 64, 96, 128), 512)  # x0.25
HINT_WEIGHT = 0.5
DIRECTION_WEIGHT = 3.0
RELATION_WEIGHT = 10.0
NORM_RATE = 4.0
"""Learning rate of batch norm's factors: they start at 1, and the teacher's are far from it."""
FORCED_DIVISORS = (4, 4, 2, 2, 1, 1, 1)
"""In a forced phase each part is trained on the batch divided by this: early maps are large."""
TEMPERATURE = 0.07
MEMORY_RATE = 0.1
EMA_DECAY = 0.999
GRADIENT_CLIP = 5.0
WARM_UP = 0.02
"""Share of a phase."""
INITIAL_RATE = 0.02
"""Share of the peak rate with which the warm-up starts."""
FINAL_RATE = 0.02
"""Share of the peak rate."""
LOG_STEPS = 50
SAVE_SECONDS = 120.0
LONGEST_STEP_SECONDS = 5.0
"""A longer step was interrupted by a pause."""
MAP_DIMENSIONS = 4


@dataclass(frozen=True)
class Phase:
    """A part of the training: crop size, minutes, peak learning rate."""

    size: tuple[int, int]
    minutes: float
    rate: float
    forced: bool = False  # each part is fed the teacher's map instead of its predecessor's
    fixed: bool = False  # batch norm by the running statistics, as in use

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Read HEIGHTxWIDTH:MINUTES:PEAK_RATE[:forced|:fixed]."""
        size, minutes, rate, *kinds = text.split(":")
        height, width = size.split("x")
        if kinds not in ([], ["forced"], ["fixed"]):
            raise ValueError(f"expected forced or fixed, got {kinds}")
        return cls(
            size=(int(height), int(width)),
            minutes=float(minutes),
            rate=float(rate),
            forced="forced" in kinds,
            fixed="fixed" in kinds,
        )

    def rate_at(self, progress: float) -> float:
        """Return the learning rate at a share of the phase: warm-up, then a falling cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        warm_up = min(1.0, INITIAL_RATE + progress / WARM_UP)
        return self.rate * warm_up * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


@dataclass
class TrainingState:
    """Everything that a checkpoint holds."""

    model: OSNet
    ema: OSNet
    optimiser: torch.optim.Optimizer
    memory: torch.Tensor  # (people, dim) centred mean features, as the student sees them
    step: int = 0
    elapsed_s: float = 0.0
    means: dict[str, float] = field(default_factory=dict)  # for the progress line

    def save(self, folder: Path) -> None:
        """Write each of the two files whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": self.memory,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "rng": torch.get_rng_state(),
        }
        on_cpu = {name: value.cpu() for name, value in self.ema.state_dict().items()}
        cleaned = from_state(on_cpu).state_dict()
        averaged = {name: value.contiguous() for name, value in cleaned.items()}
        for name, content in (("checkpoint.pt", state), ("ema.pth", averaged)):
            torch.save(content, folder / f"{name}.part")
            (folder / f"{name}.part").replace(folder / name)

    def load(self, path: Path) -> None:
        """Go on where `path` was saved."""
        state = torch.load(path, map_location=self.memory.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.memory = state["memory"]
        self.step = state["step"]
        self.elapsed_s = state["elapsed_s"]
        torch.set_rng_state(state["rng"].cpu())

    def note(self, **values: float) -> None:
        """Update the running means of the progress line."""
        for name, now in values.items():
            self.means[name] = 0.98 * self.means.get(name, now) + 0.02 * now

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        means = self.ema.state_dict().values()
        values = self.model.state_dict().values()
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def remember(self, features: torch.Tensor, person: torch.Tensor) -> None:
        """Move the memory of the people in a batch towards their new features."""
        for number in person.unique():
            mean = features[person == number].mean(0)
            moved = self.memory[number].lerp(mean, MEMORY_RATE)
            self.memory[number] = functional.normalize(moved, dim=0)


@dataclass(frozen=True)
class Lesson:
    """Part of a batch, with the teachers' output for it.

    `weights` are of the maps' channels. They scale the squared errors so that a channel of small
    variance counts less than one of large variance, but not as much less as its variance.
    """

    images: torch.Tensor  # (B, 3, H, W), augmented and normalised
    person: torch.Tensor  # (B,)
    maps: list[torch.Tensor]  # of the first teacher's parts; the last are its features
    weights: list[torch.Tensor]  # for each map (channels,)
    relations: torch.Tensor  # (B, B), the teachers' mean similarities, centred


@dataclass(frozen=True)
class Shard:
    """The result of one part of a batch."""

    gradients: tuple[torch.Tensor, ...]  # by parameter
    notes: dict[str, float]  # for the progress line
    features: torch.Tensor  # (b, dim), of the crops whose person is known
    person: torch.Tensor  # (b,)


def replica(model: OSNet) -> OSNet:
    """Return a network with the same parameters and running statistics of its own.

    It is for another thread.
    """
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.modules(), other.modules(), strict=True):
        theirs._parameters.update(mine._parameters)  # noqa: SLF001 - as torch's own replicate()
    return other


@dataclass(frozen=True)
class Setup:
    """What stays the same during a training."""

    crops: Crops
    batches: Batches
    distinct: torch.Tensor  # `crops.distinct` on the training device
    mean: torch.Tensor  # of the first teacher's features
    teachers: dict[tuple[int, int], list[Teacher]]
    identity_weight: float
    device: torch.device
    weights: dict[tuple[int, int], list[torch.Tensor]] = field(default_factory=dict)

    def prepare(self, size: tuple[int, int]) -> Lesson:
        """Draw a batch, augment it, run the teachers on it."""
        rows = self.batches.draw()
        x, genuine = augment(self.crops.images[rows].to(self.device), size)
        person = torch.where(genuine, self.crops.person[rows].to(self.device), NOBODY)
        taught = [teacher(x) for teacher in self.teachers[size]]
        relations = [
            _relations(maps[-1], functional.normalize(maps[-1]).mean(0)) for maps in taught
        ]
        maps = [_channels_last(one.bfloat16()) for one in taught[0][:-1]] + taught[0][-1:]
        if size not in self.weights:
            variances = [_channel_variance(one) for one in taught[0]]
            self.weights[size] = [1 / (variance + variance.mean()) for variance in variances]
        return Lesson(
            _channels_last(x), person, maps, self.weights[size], torch.stack(relations).mean(0)
        )

    def shard(self, model: OSNet, memory: torch.Tensor, phase: Phase) -> Shard:
        """Train on one part of a batch, and return the gradients.

        Several run side by side, each in a thread of its own.
        """
        lesson = self.prepare(phase.size)
        notes = {}
        own = lesson.images
        for i, (part, target) in enumerate(zip(parts(model), lesson.maps, strict=True)):
            count = len(own) // FORCED_DIVISORS[i] if phase.forced else len(own)
            with torch.autocast(own.device.type, torch.bfloat16):
                found = part(own[:count])
            notes[f"h{i}"] = Hint.apply(found, target[:count], lesson.weights[i])
            own = target if phase.forced else found
        loss = HINT_WEIGHT * torch.stack(list(notes.values())).sum()
        target = functional.normalize(lesson.maps[-1])
        own = functional.normalize(found.float())
        notes["cos"] = (own * target).sum(1).mean()
        notes["relation"] = (_relations(own, target.mean(0)) - lesson.relations).square().mean()
        loss = loss + DIRECTION_WEIGHT * (1 - notes["cos"]) + RELATION_WEIGHT * notes["relation"]
        known = lesson.person >= 0
        features = centre(own, self.mean)[known]
        person = lesson.person[known]
        if self.identity_weight and not phase.forced:
            notes["identity"] = self._identity(memory, features, person)
            loss = loss + self.identity_weight * notes["identity"]
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return Shard(
            gradients,
            {name: float(value.detach()) for name, value in notes.items()},
            features.detach(),
            person,
        )

    def _identity(
        self, memory: torch.Tensor, features: torch.Tensor, person: torch.Tensor
    ) -> torch.Tensor:
        counted = self.distinct[person]
        counted[torch.arange(len(person)), person] = True
        logits = (features @ memory.T / TEMPERATURE).masked_fill(~counted, -math.inf)
        return functional.cross_entropy(logits, person)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Arrange maps (B, C, H, W) with channels last in memory; features (B, C) stay as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == MAP_DIMENSIONS else x


def _channel_variance(x: torch.Tensor) -> torch.Tensor:
    """Return the variance (C,) over all dimensions but the second."""
    return x.var([dimension for dimension in range(x.ndim) if dimension != 1])


def _relations(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    centred = centre(features, mean)
    return centred @ centred.T


def train(
    state: TrainingState, setup: Setup, phases: list[Phase], args: argparse.Namespace
) -> None:
    """Train until the phases are over, saving now and then."""
    check = Check(setup.crops)
    last = saved = checked = time.monotonic()
    print(check.metrics(state.ema, setup.device), flush=True)
    models = [state.model, *(replica(state.model) for _ in range(args.shards - 1))]
    begun_s = 0.0
    with ThreadPoolExecutor(args.shards) as pool:
        for phase in phases:
            length_s = phase.minutes * 60
            while state.elapsed_s < begun_s + length_s:
                rate = phase.rate_at((state.elapsed_s - begun_s) / length_s)
                train_step(state, setup, models, rate, phase, pool)
                now = time.monotonic()
                state.elapsed_s += min(now - last, LONGEST_STEP_SECONDS)
                last = now
                if state.step % LOG_STEPS == 0:
                    print(_progress(state, phase, rate), flush=True)
                if now - saved > SAVE_SECONDS:
                    state.save(args.out)
                    saved = now
                if now - checked > args.check * 60:
                    print(check.metrics(state.ema, setup.device), flush=True)
                    checked = last = time.monotonic()
            begun_s += length_s
    state.save(args.out)
    print(check.metrics(state.ema, setup.device), flush=True)


def _progress(state: TrainingState, phase: Phase, rate: float) -> str:
    means = " ".join(f"{name} {value:.4f}" for name, value in state.means.items())
    return f"{state.elapsed_s:.0f} s step {state.step} {phase.size} {means} rate {rate:.6f}"


def train_step(
    state: TrainingState,
    setup: Setup,
    models: list[OSNet],
    rate: float,
    phase: Phase,
    pool: ThreadPoolExecutor,
) -> None:
    """Train on a batch, its parts side by side; move the weights and their average."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate * group["scale"]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(not phase.fixed)
    shards = list(pool.map(lambda model: setup.shard(model, state.memory, phase), models))
    by_shard = [shard.gradients for shard in shards]
    for parameter, *gradients in zip(state.model.parameters(), *by_shard, strict=True):
        parameter.grad = torch.stack(gradients).mean(0)
    nn.utils.clip_grad_norm_(state.model.parameters(), GRADIENT_CLIP)
    state.optimiser.step()
    state.step += 1
    state.average()
    for shard in shards:
        state.note(**shard.notes)
        state.remember(shard.features, shard.person)


def initial_state(args: argparse.Namespace, crops: Crops, device: torch.device) -> TrainingState:
    """Start from random weights, from `--init`, or from the checkpoint for `--resume`."""
    model = from_state(read_checkpoint(args.init)) if args.init else OSNet(STUDENT)
    model.to(device, memory_format=torch.channels_last).train()
    kernels = {"params": [p for p in model.parameters() if p.ndim > 1], "scale": 1.0}
    others = {"params": [p for p in model.parameters() if p.ndim == 1], "scale": NORM_RATE}
    optimiser = Muon([kernels, others], 1e-3)
    known = crops.person >= 0
    centred = centre(crops.clean, crops.clean.mean(0))
    memory = person_means(centred[known], crops.person[known], len(crops.distinct)).to(device)
    state = TrainingState(model, copy.deepcopy(model).eval(), optimiser, memory)
    if args.resume and (args.out / "checkpoint.pt").is_file():
        state.load(args.out / "checkpoint.pt")
    return state


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {MARKET} and {VIDEOS}")
    parser.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        required=True,
        help="OSNet weights, 512-d, the best first",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--phases", type=Phase.parse, nargs="+", required=True, help=Phase.parse.__doc__
    )
    parser.add_argument("--init", type=Path, help="start from these weights instead of random ones")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--identity", type=float, default=0.0, help="weight of the identity loss")
    parser.add_argument(
        "--batch", type=int, default=64, help="crops in a batch, a multiple of 32 for each shard"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--shards", type=int, default=2, help="parts of a batch, a thread each: as many as cores"
    )
    parser.add_argument(
        "--check", type=float, default=10, help="minutes between metrics on what is held out"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train as the command line says."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pid").write_text(f"{os.getpid()}\n")
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if args.device == "auto" else args.device)
    images, names = load_images(args.data, args.out / "images.npy")
    sizes = {phase.size for phase in args.phases}
    teachers = {
        size: [load_teacher(path, device, args.out, size) for path in args.teachers]
        for size in sizes
    }
    cache = args.out / f"{args.teachers[0].stem}.features.npy"
    if not cache.is_file():
        np.save(cache, embed(from_state(read_checkpoint(args.teachers[0])), images, device).numpy())
    crops = label_crops(images, names, torch.from_numpy(np.load(cache)))
    batches = Batches(crops, args.batch // args.shards)
    identities = len(batches.market)
    print(
        f"{len(images)} crops, {(crops.person == HELD_OUT).sum()} held out, "
        f"{identities} identities, {len(crops.distinct) - identities} tracklets of "
        f"{(crops.person >= identities).sum()} crops, {len(batches.videos)} videos; "
        f"{device}, teachers {[path.name for path in args.teachers]}",
        flush=True,
    )
    setup = Setup(
        crops=crops,
        batches=batches,
        distinct=crops.distinct.to(device),
        mean=crops.clean.mean(0).to(device),
        teachers=teachers,
        identity_weight=args.identity,
        device=device,
    )
    train(initial_state(args, crops, device), setup, args.phases, args)


if __name__ == "__main__":
    main()
