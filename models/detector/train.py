"""Train the person detector on labelled pictures; goes on from OUT/last.pt if that is there.

    nice -n 19 python models/detector/train.py --tar detector_train.tar --out RUN --minutes 120

Per box the few cells that fit best are a person (dynamic k as in SimOTA, Ge et al. 2021), and their
score should be the confidence of the label times the IoU (quality focal loss, Li et al. 2020).
Cells within a box to be ignored count for nothing. Boxes learn by GIoU and smooth L1. OUT gets
last.pt, with all that is needed to go on, and ema.safetensors, the averaged weights for export.py.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from crops import LabelledCrops
from safetensors.torch import load_file, save_file
from torch.nn import functional

from streamproc.networks.person_network import STRIDES, PersonDetector, boxes_of, folded

START = Path(__file__).with_name("persondet_train.safetensors")
WARM_UP_STEPS = 200
SAVE_SECONDS = 240
_MOST_GRADIENT = 35.0
_NEAR_STRIDES = 2.0
_MOST_CELLS = 10
_FAR = 1e5
_SMALLEST_PX = (3, 8)

Levels = list[torch.Tensor]
Cells = tuple[torch.Tensor, torch.Tensor]


def cells_of(levels: Levels) -> Cells:
    """Return the middles (a, 2) and strides (a,) of all cells."""
    middles = []
    strides = []
    for level, stride in zip(levels, STRIDES, strict=True):
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in level.shape[-2:]), indexing="ij")
        middles.append((torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((rows.numel(),), float(stride)))
    return torch.cat(middles), torch.cat(strides)


def pair_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return IoU (n, m) of boxes (n, 4) and (m, 4)."""
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    common = sides.clamp(min=0).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None]
    return common / (areas - common + 1e-6)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return generalised IoU (n,) of boxes (n, 4), one by one (Rezatofighi et al., CVPR 2019)."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common + 1e-6
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1) + 1e-6
    return common / union - (hull - union) / hull


def inside(middles: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return (k, a): whether each cell's middle is in each box (k, 4)."""
    after = (middles[None] > boxes[:, None, :2]).all(-1)
    return after & (middles[None] < boxes[:, None, 2:4]).all(-1)


class Targets:
    """What the scores (a,) and boxes (a, 4) of one crop should be, and how much each counts."""

    def __init__(
        self, found: torch.Tensor, scores: torch.Tensor, cells: Cells, rows: torch.Tensor
    ) -> None:
        """`found` (a, 4) and `scores` (a,) are the network's, `rows` (k, 6) the labels."""
        middles, strides = cells
        self.score = torch.zeros_like(scores)
        self.box = found.clone()
        self.score_weight = torch.ones_like(scores)
        self.box_weight = torch.zeros_like(scores)
        size = rows[:, 2:4] - rows[:, :2]
        is_small = (size[:, 0] <= _SMALLEST_PX[0]) | (size[:, 1] <= _SMALLEST_PX[1])
        is_ignored = (rows[:, 5] > 0) | is_small
        if is_ignored.any():
            self.score_weight[inside(middles, rows[is_ignored]).any(0)] = 0
        people = rows[~is_ignored]
        if len(people):
            self._assign(found, scores, middles, strides, people)

    def _assign(
        self,
        found: torch.Tensor,
        scores: torch.Tensor,
        middles: torch.Tensor,
        strides: torch.Tensor,
        people: torch.Tensor,
    ) -> None:
        centres = (people[:, :2] + people[:, 2:4]) / 2
        near = (middles[None] - centres[:, None]).abs() < _NEAR_STRIDES * strides[None, :, None]
        fits = near.all(-1) & inside(middles, people)
        iou = pair_iou(people[:, :4], found)
        cost = -(3 * iou.clamp(min=1e-4).log() + scores[None].clamp(min=1e-4).log())
        cost = cost + (~fits) * _FAR
        counts = (iou * fits).topk(min(_MOST_CELLS, iou.shape[1]), 1).values.sum(1).round()
        owner = torch.full_like(scores, -1, dtype=torch.long)
        best = torch.full_like(scores, _FAR / 10)
        for person in range(len(people)):
            costs, where = cost[person].topk(max(1, int(counts[person])), largest=False)
            is_better = costs < best[where]
            owner[where[is_better]] = person
            best[where[is_better]] = costs[is_better]
        taken = owner >= 0
        who = owner[taken]
        quality = iou[who, taken.nonzero()[:, 0]].clamp(min=0.2)
        self.score[taken] = people[who, 4].clamp(min=0.6).sqrt() * quality
        self.box[taken] = people[who, :4]
        self.score_weight[taken] = 1
        self.box_weight[taken] = people[who, 4].clamp(min=0.5)


def loss_of(levels: Levels, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the three parts of the loss, weighted, for labels (k, 7): crop, box, ..."""
    pairs = zip(levels, STRIDES, strict=True)
    boxes = torch.cat([boxes_of(level, stride).flatten(1, 2) for level, stride in pairs], 1)
    logits = torch.cat([level[:, 4].flatten(1) for level in levels], 1)
    cells = cells_of(levels)
    with torch.no_grad():
        scores = logits.sigmoid()
        targets = [
            Targets(boxes[k], scores[k], cells, labels[labels[:, 0] == k][:, 1:])
            for k in range(len(boxes))
        ]
    wanted = torch.stack([target.score for target in targets])
    weight = torch.stack([target.score_weight for target in targets])
    focus = (scores - wanted).abs() ** 1.5 * weight
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    losses = {"score": (entropy * focus).sum() / wanted.sum().clamp(min=8.0)}
    box_weight = torch.stack([target.box_weight for target in targets])
    taken = box_weight > 0
    if taken.any():
        found, true = boxes[taken], torch.stack([target.box for target in targets])[taken]
        weights = box_weight[taken]
        size = (true[:, 2:] - true[:, :2]).clamp(min=4).repeat(1, 2)
        smooth = functional.smooth_l1_loss(found / size * 4, true / size * 4, reduction="none")
        losses["giou"] = 2 * ((1 - giou(found, true)) * weights).sum() / weights.sum()
        losses["l1"] = 0.3 * (smooth.sum(1) * weights).sum() / weights.sum()
    return losses


class Training:
    """Network, averaged weights, optimiser, and how far they are."""

    def __init__(self, out: Path, start: Path | None, rate: float) -> None:
        self._out = out
        self.network = PersonDetector().train()
        if start is not None:
            state = {name: value.float() for name, value in load_file(start).items()}
            fit = self.network.load_state_dict(state, strict=False)
            if any(not name.endswith("num_batches_tracked") for name in fit.missing_keys):
                raise SystemExit(f"{start}: expected weights with batch norms")
        self.average = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        matrices = [value for value in self.network.parameters() if value.ndim > 1]
        others = [value for value in self.network.parameters() if value.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0)
        self.step = 0
        self.spent_seconds = 0.0
        if (out / "last.pt").exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self._out / "last.pt", weights_only=True)
        self.network.load_state_dict(state["net"])
        self.average.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["opt"])
        self.step, self.spent_seconds = state["step"], state["spent"]

    def save(self) -> None:
        """Write both files, each whole or not at all."""
        state = {
            "net": self.network.state_dict(),
            "ema": self.average.state_dict(),
            "opt": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.spent_seconds,
        }
        torch.save(state, self._out / "last.part")
        (self._out / "last.part").replace(self._out / "last.pt")
        save_file(folded(self.average).state_dict(), self._out / "ema.part")
        (self._out / "ema.part").replace(self._out / "ema.safetensors")

    def learn(self, crops: torch.Tensor, labels: torch.Tensor, rate: float) -> dict[str, float]:
        """Take one step at this rate; return the parts of the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            levels = self.network.raw(crops.float())
        losses = loss_of([level.float() for level in levels], labels)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _MOST_GRADIENT)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        self._average(min(0.9985, (1 + self.step) / (20 + self.step)))
        return {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def _average(self, keep: float) -> None:
        both = zip(
            self.average.state_dict().values(), self.network.state_dict().values(), strict=True
        )
        for mean, value in both:
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)


def main() -> None:
    """Train until the minutes are spent, over all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar", type=Path, required=True, help="labelled pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of this training")
    parser.add_argument("--start", type=Path, default=START, help="weights with batch norms")
    parser.add_argument("--from-random", action="store_true", help="no weights to start from")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--size", type=int, default=320, help="side of a crop, a multiple of 32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    training = Training(given.out, None if given.from_random else given.start, given.rate)
    seed = 1000 * training.step
    crops = iter(LabelledCrops(given.tar, size=given.size, batch=given.batch, seed=seed))
    began = time.monotonic() - training.spent_seconds
    saved = time.monotonic()
    while (share := training.spent_seconds / 60 / given.minutes) < 1:
        warm = min(1, (training.step + 1) / WARM_UP_STEPS)
        rate = given.rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        losses = training.learn(*next(crops), rate)
        training.spent_seconds = time.monotonic() - began
        if training.step % 20 == 0:
            parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            minutes = training.spent_seconds / 60
            print(f"step {training.step}, {minutes:.1f} min: {parts}", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            training.save()
    training.save()


if __name__ == "__main__":
    main()
