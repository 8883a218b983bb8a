"""Make our own OSNet x0.25: from random initialisation, distilled from published weights.

PYTHONPATH=. python models/distill.py --data DATA/reid --teachers B.pt --out FOLDER --phases
PHASE...

Teacher and student see the same augmented crop. They are one architecture, so besides the feature
the maps after each of the six OSNet blocks are matched ("hints": Romero et al., FitNets, ICLR
2015). At first each part is fed the teacher's map, so all learn at once; then the student runs from
the pixels to the feature. Further losses: direction (cosine to the first teacher's feature),
structure (similarities within the batch, each side's mean subtracted), and, if asked for, identity
(softmax over the mean features of people: Market-1501's training identities, and tracklets, crops
of a video that the first teacher links from frame to frame).

Each phase is HEIGHTxWIDTH:MINUTES:PEAK_RATE, with `:forced` where parts are fed the teacher's maps,
or `:fixed` where batch norm uses its running statistics, as in use. Small crops learn most for the
time.

FOLDER gets `checkpoint.pt` (for `--resume`, which may be given other phases), `ema.pth` (averaged
weights: what to evaluate and convert), `pid`, and caches. Progress goes to stdout, with figures on
people and videos that are held out. A stopped process (SIGSTOP) goes on later; its pause does not
count as training time.
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
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from distillation.augmentation import augment
from distillation.check import Check
from distillation.crops import (
    HELD_OUT,
    MARKET,
    NOBODY,
    VIDEOS,
    Batches,
    centre,
    know,
    load_images,
    person_means,
)
from distillation.networks import Hint, Muon, embed, load_teacher, parts
from torch import nn

from streamproc.networks.weights import read_checkpoint
from streamproc.reid.osnet import OSNet, OSNetConfig, from_state

if TYPE_CHECKING:
    from distillation.crops import Crops
    from distillation.networks import Teacher

STUDENT = OSNetConfig((16, 64, 96, 128), 512)  # x0.25
HINT_WEIGHT = 0.5
DIRECTION_WEIGHT = 3.0
RELATION_WEIGHT = 10.0
NORM_RATE = 4.0  # batch norm's factors start at 1, the teacher's are far from it
FORCED_DIVISORS = (4, 4, 2, 2, 1, 1, 1)  # of the batch, for each part
TEMPERATURE = 0.07
MEMORY_RATE = 0.1
EMA_DECAY = 0.999
GRADIENT_CLIP = 5.0
WARM_UP = 0.02  # of a phase
FINAL_RATE = 0.02  # of its peak
LOG_STEPS = 50
SAVE_S = 120.0
LONGEST_STEP_S = 5.0  # what is longer was a pause


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
            (int(height), int(width)),
            float(minutes),
            float(rate),
            "forced" in kinds,
            "fixed" in kinds,
        )

    def rate_at(self, progress: float) -> float:
        """Warm-up, then a cosine from the peak to a small part of it."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return (
            self.rate
            * min(1.0, 0.02 + progress / WARM_UP)
            * (FINAL_RATE + (1 - FINAL_RATE) * cosine)
        )


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
        averaged = {
            name: value.contiguous() for name, value in from_state(averaged).state_dict().items()
        }
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

    def note(self, **values: float) -> None:
        """Update the running means of the progress line."""
        for name, now in values.items():
            self.means[name] = 0.98 * self.means.get(name, now) + 0.02 * now

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, value in zip(
            self.ema.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
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
    """Part of a batch with all that the teachers say of it."""

    images: torch.Tensor  # (B, 3, H, W), augmented and normalised
    person: torch.Tensor  # (B,)
    maps: list[torch.Tensor]  # of the first teacher's parts, the last its features
    weights: list[
        torch.Tensor
    ]  # of the maps' channels: a quiet one counts less than a loud one, not as much less
    relations: torch.Tensor  # (B, B) the teachers' mean similarities, centred


@dataclass(frozen=True)
class Shard:
    """What one part of a batch gave: gradients by parameter, figures, features (b, dim) and whose they are."""

    gradients: tuple[torch.Tensor, ...]
    notes: dict[str, float]
    features: torch.Tensor
    person: torch.Tensor


def replica(model: OSNet) -> OSNet:
    """The same parameters with running statistics of its own, for another thread."""
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.modules(), other.modules(), strict=True):
        theirs._parameters.update(mine._parameters)  # noqa: SLF001 - torch's own replicate() does so too
    return other


@dataclass(frozen=True)
class Course:
    """What stays the same during a run."""

    crops: Crops
    batches: Batches
    rival: torch.Tensor  # on the training device
    mean: torch.Tensor  # of the first teacher's features
    teachers: dict[tuple[int, int], list[Teacher]]
    identity_weight: float
    device: torch.device
    weights: dict[tuple[int, int], list[torch.Tensor]] = field(default_factory=dict)

    def prepare(self, size: tuple[int, int]) -> Lesson:
        """Draw a batch, augment it, ask the teachers."""
        rows = self.batches.draw()
        x, genuine = augment(self.crops.images[rows].to(self.device), size)
        person = torch.where(genuine, self.crops.person[rows].to(self.device), NOBODY)
        taught = [teacher(x) for teacher in self.teachers[size]]
        relations = [_relations(maps[-1], F.normalize(maps[-1]).mean(0)) for maps in taught]
        maps = [_channels_last(one.bfloat16()) for one in taught[0][:-1]] + taught[0][-1:]
        if size not in self.weights:
            variances = [one.var([d for d in range(one.ndim) if d != 1]) for one in taught[0]]
            self.weights[size] = [1 / (variance + variance.mean()) for variance in variances]
        return Lesson(
            _channels_last(x), person, maps, self.weights[size], torch.stack(relations).mean(0)
        )

    def shard(self, model: OSNet, memory: torch.Tensor, phase: Phase) -> Shard:
        """Teach one part of a batch and return the gradients: several run side by side, a thread each."""
        lesson = self.prepare(phase.size)
        notes, own = {}, lesson.images
        for i, (part, target) in enumerate(zip(parts(model), lesson.maps, strict=True)):
            count = len(own) // FORCED_DIVISORS[i] if phase.forced else len(own)
            with torch.autocast(own.device.type, torch.bfloat16):
                found = part(own[:count])
            notes[f"h{i}"] = Hint.apply(found, target[:count], lesson.weights[i])
            own = target if phase.forced else found
        loss = HINT_WEIGHT * torch.stack(list(notes.values())).sum()
        target, own = F.normalize(lesson.maps[-1]), F.normalize(found.float())
        notes["cos"] = (own * target).sum(1).mean()
        notes["relation"] = (_relations(own, target.mean(0)) - lesson.relations).square().mean()
        loss = loss + DIRECTION_WEIGHT * (1 - notes["cos"]) + RELATION_WEIGHT * notes["relation"]
        known = lesson.person >= 0
        features, person = centre(own, self.mean)[known], lesson.person[known]
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
        counted = self.rival[person]
        counted[torch.arange(len(person)), person] = True
        logits = (features @ memory.T / TEMPERATURE).masked_fill(~counted, -math.inf)
        return F.cross_entropy(logits, person)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # noqa: PLR2004 - a map


def _relations(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    centred = centre(features, mean)
    return centred @ centred.T


def train(run: Run, course: Course, phases: list[Phase], args: argparse.Namespace) -> None:
    """Train until the phases are over, saving now and then."""
    check = Check(course.crops)
    last = saved = checked = time.monotonic()
    print(check.figures(run.ema, course.device), flush=True)
    models = [run.model, *(replica(run.model) for _ in range(args.shards - 1))]
    begun_s = 0.0
    with ThreadPoolExecutor(args.shards) as pool:
        for phase in phases:
            length_s = phase.minutes * 60
            while run.elapsed_s < begun_s + length_s:
                rate = phase.rate_at((run.elapsed_s - begun_s) / length_s)
                train_step(run, course, models, rate, phase, pool)
                now = time.monotonic()
                run.elapsed_s += min(now - last, LONGEST_STEP_S)
                last = now
                if run.step % LOG_STEPS == 0:
                    means = " ".join(f"{name} {value:.4f}" for name, value in run.means.items())
                    print(
                        f"{run.elapsed_s:.0f} s step {run.step} {phase.size} {means} rate {rate:.6f}",
                        flush=True,
                    )
                if now - saved > SAVE_S:
                    run.save(args.out)
                    saved = now
                if now - checked > args.check * 60:
                    print(check.figures(run.ema, course.device), flush=True)
                    checked = last = time.monotonic()
            begun_s += length_s
    run.save(args.out)
    print(check.figures(run.ema, course.device), flush=True)


def train_step(
    run: Run,
    course: Course,
    models: list[OSNet],
    rate: float,
    phase: Phase,
    pool: ThreadPoolExecutor,
) -> None:
    """Teach a batch in parts side by side, move the weights and their average."""
    for group in run.optimiser.param_groups:
        group["lr"] = rate * group["scale"]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(not phase.fixed)
    shards = list(pool.map(lambda model: course.shard(model, run.memory, phase), models))
    for parameter, *gradients in zip(
        run.model.parameters(), *(shard.gradients for shard in shards), strict=True
    ):
        parameter.grad = torch.stack(gradients).mean(0)
    nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_CLIP)
    run.optimiser.step()
    run.step += 1
    run.average()
    for shard in shards:
        run.note(**shard.notes)
        run.remember(shard.features, shard.person)


def new_run(args: argparse.Namespace, crops: Crops, device: torch.device) -> Run:
    """Begin from random weights, `--init` or `--resume`."""
    model = from_state(read_checkpoint(args.init)) if args.init else OSNet(STUDENT)
    model.to(device, memory_format=torch.channels_last).train()
    kernels = {"params": [p for p in model.parameters() if p.ndim > 1], "scale": 1.0}
    others = {"params": [p for p in model.parameters() if p.ndim == 1], "scale": NORM_RATE}
    optimiser = Muon([kernels, others], 1e-3)
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
        "--check", type=float, default=10, help="minutes between figures on what is held out"
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
    crops = know(images, names, torch.from_numpy(np.load(cache)))
    batches = Batches(crops, args.batch // args.shards)
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
