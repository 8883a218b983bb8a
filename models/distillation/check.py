"""Metrics on people and videos that are held out of the training."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from distillation.crops import HELD_OUT, centre, link
from distillation.networks import embed

if TYPE_CHECKING:
    from distillation.crops import Crops
    from streamproc.reid.osnet import OSNet


CROPS_A_TRACK = 8


class Check:
    """Measures how well people and videos that are held out are told apart.

    Each track is represented by the mean of up to 8 crops. "people": tracks of Market-1501, each of
    a person in a camera, all pairs. "videos": halves of tracklets, compared with each other and
    with those that they share a frame with.
    """

    def __init__(self, crops: Crops) -> None:
        rows = np.flatnonzero(crops.person.numpy() == HELD_OUT)
        self._images = crops.images[rows]
        self._clean = crops.clean[rows]
        scene = crops.scene[rows]
        names = [crops.names[row].removesuffix(".jpg").split("_") for row in rows]
        self._market_rows = scene == 0
        self._video_rows = scene > 0
        self._set_market(names)
        frames = [
            int(name[1]) if is_video else 0
            for name, is_video in zip(names, self._video_rows, strict=True)
        ]
        self._set_videos(scene, np.array(frames))

    def _set_market(self, names: list[list[str]]) -> None:
        cameras: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in np.flatnonzero(self._market_rows):
            cameras[names[i][0], names[i][1][:2]].append(int(i))
        self._market_tracks = [rows[:CROPS_A_TRACK] for rows in cameras.values()]
        people = np.array([who for who, _ in cameras])
        upper = np.triu(np.ones((len(people), len(people)), dtype=bool), 1)
        same = people[:, None] == people
        self._market_pairs = (upper & same, upper & ~same)

    def _set_videos(self, scene: np.ndarray, frame: np.ndarray) -> None:
        centred = centre(self._clean, self._clean.mean(0)).numpy()
        half_crops = CROPS_A_TRACK // 2
        self._halves: list[list[int]] = []
        seen = []
        for video in np.unique(scene[self._video_rows]):
            rows = np.flatnonzero(scene == video)
            for tracklet in link(centred[rows], frame[rows]):
                own = rows[tracklet]
                middle = len(own) // 2
                self._halves.append(own[:middle][-half_crops:].tolist())
                self._halves.append(own[middle:][-half_crops:].tolist())
                seen += [{(video, moment) for moment in frame[own]}] * 2
        number = np.arange(len(self._halves)) // 2
        together = np.array([_shares_with(one, seen) for one in seen])
        same = number[:, None] == number
        self._video_pairs = (np.triu(same, 1), np.triu(together & ~same, 1))

    def metrics(self, model: OSNet, device: torch.device) -> str:
        """Return a line: TPR at an FPR of 1 %, AUC, and the cosine to the first teacher."""
        features = embed(model.eval(), self._images, device)
        cosine = (features * self._clean).sum(1).numpy()
        parts = []
        for name, tracks, pairs, rows in (
            ("people", self._market_tracks, self._market_pairs, self._market_rows),
            ("videos", self._halves, self._video_pairs, self._video_rows),
        ):
            means = functional.normalize(torch.stack([features[track].mean(0) for track in tracks]))
            parts.append(f"{name} {_separation(means, pairs)}")
            parts.append(f"{name} centred {_separation(centre(means, means.mean(0)), pairs)}")
            parts.append(f"cos {cosine[rows].mean():.3f}")
        return "held out (TPR at FPR 1 %, AUC): " + ", ".join(parts)


def _shares_with(one: set, others: list[set]) -> list[bool]:
    return [bool(one & other) for other in others]


def _separation(vectors: torch.Tensor, pairs: tuple[np.ndarray, np.ndarray]) -> str:
    """Return TPR at an FPR of 1 % and AUC, for masks (n, n) of true and of wrong pairs."""
    similarity = (vectors @ vectors.T).numpy()
    true = similarity[pairs[0]]
    wrong = np.sort(similarity[pairs[1]])
    share = (true > np.quantile(wrong, 0.99)).mean()
    auc = np.searchsorted(wrong, true).mean() / len(wrong)
    return f"{share:.3f} {auc:.4f}"
