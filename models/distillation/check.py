"""Figures on people and videos that are not trained on."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from distillation.crops import HELD_OUT, centre, link
from distillation.networks import embed

if TYPE_CHECKING:
    from distillation.crops import Crops
    from streamproc.reid.osnet import OSNet


class Check:
    """How well people and videos that are not trained on are told apart, each track by the mean of up to 8 crops.

    Market: tracks are a person in a camera, all pairs. Videos: tracklets halved, against those they
    share a frame with.
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
        self._videos(
            scene,
            np.array(
                [int(name[1]) if place else 0 for name, place in zip(names, scene, strict=True)]
            ),
        )
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
