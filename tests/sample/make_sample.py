"""Makes the sample clip and its tracks: `python tests/sample/make_sample.py [FOLDER]`.

Figures that differ in clothing walk through a scene; one of them leaves and comes back under a new
id, as after a tracker's identity switch. Everything is drawn here, from a seed; no picture of a
real person is in it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from streamproc.tracks import save_tracks
from streamproc.types import Track

WIDTH, HEIGHT, FRAMES, FRAMES_PER_SECOND = 640, 360, 150, 25


@dataclass(frozen=True)
class Walk:
    """One figure on its way from x0 to x1, between the frames `start` and `end`.

    Its feet are at `y`, and it is `tall` pixels high.
    """

    person_id: int
    look: str
    start: int
    end: int
    x0: float
    x1: float
    y: float
    tall: int


LOOKS = {
    "red": {
        "coat": (178, 34, 40),
        "legs": (28, 30, 48),
        "hair": (40, 26, 18),
        "skin": (226, 178, 146),
        "bag": None,
        "stripe": False,
    },
    "yellow": {
        "coat": (228, 190, 52),
        "legs": (92, 74, 58),
        "hair": (200, 164, 92),
        "skin": (238, 200, 172),
        "bag": (60, 90, 60),
        "stripe": False,
    },
    "striped": {
        "coat": (236, 236, 238),
        "legs": (54, 88, 140),
        "hair": (18, 18, 20),
        "skin": (150, 104, 76),
        "bag": None,
        "stripe": True,
    },
    "black": {
        "coat": (26, 26, 30),
        "legs": (18, 18, 20),
        "hair": (88, 58, 40),
        "skin": (216, 168, 136),
        "bag": (170, 60, 120),
        "stripe": False,
    },
    "green": {
        "coat": (54, 122, 74),
        "legs": (206, 200, 186),
        "hair": (120, 120, 124),
        "skin": (232, 188, 158),
        "bag": None,
        "stripe": False,
    },
}
WALKS = (
    Walk(1, "red", 0, 62, 30, 610, 300, 168),
    Walk(2, "yellow", 5, 140, 600, 60, 330, 190),
    Walk(3, "striped", 0, 149, 180, 330, 268, 140),
    Walk(4, "black", 30, 149, 20, 560, 342, 200),
    Walk(5, "green", 60, 149, 620, 250, 285, 152),
    Walk(6, "red", 92, 149, 610, 210, 312, 172),
)


def figure(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    tall: float,
    look: dict[str, object],
    phase: float,
) -> None:
    """Draw one walking figure with its feet at (x, y)."""
    swing = np.sin(phase)
    unit = tall / 8
    hip = y - 4 * unit
    neck = y - 6.8 * unit
    for side in (-1, 1):
        knee = x + side * swing * unit * 0.6
        foot = x + side * swing * unit * 1.2
        draw.line(
            [(x, hip), (knee, y - 2 * unit), (foot, y)],
            fill=look["legs"],
            width=int(unit * 0.85),
            joint="curve",
        )
    draw.rounded_rectangle(
        [x - unit * 1.05, neck, x + unit * 1.05, hip + unit * 0.4],
        radius=unit * 0.5,
        fill=look["coat"],
    )
    if look["stripe"]:
        for k in range(4):
            top = neck + (0.4 + 0.75 * k) * unit
            draw.rectangle(
                [x - unit * 1.05, top, x + unit * 1.05, top + unit * 0.3], fill=(40, 60, 120)
            )
    for side in (-1, 1):
        hand = (x + side * unit * 1.1 - side * swing * unit * 0.9, hip + unit * 0.2)
        draw.line(
            [(x + side * unit * 1.0, neck + unit * 0.5), hand],
            fill=look["coat"],
            width=int(unit * 0.55),
        )
        draw.ellipse(
            [
                hand[0] - unit * 0.25,
                hand[1] - unit * 0.25,
                hand[0] + unit * 0.25,
                hand[1] + unit * 0.25,
            ],
            fill=look["skin"],
        )
    if look["bag"]:
        draw.rounded_rectangle(
            [x + unit * 0.5, hip - unit * 1.2, x + unit * 1.5, hip + unit * 0.4],
            radius=unit * 0.2,
            fill=look["bag"],
        )
    draw.ellipse(
        [x - unit * 0.55, neck - unit * 1.25, x + unit * 0.55, neck + unit * 0.05],
        fill=look["skin"],
    )
    draw.pieslice(
        [x - unit * 0.6, neck - unit * 1.3, x + unit * 0.6, neck - unit * 0.1],
        180,
        360,
        fill=look["hair"],
    )


def background(rng: np.random.Generator) -> Image.Image:
    """A street: wall, windows, pavement."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (168, 170, 172))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, WIDTH, 170], fill=(142, 132, 122))
    for k in range(7):
        draw.rectangle(
            [24 + k * 92, 36, 78 + k * 92, 128],
            fill=(88, 102, 118),
            outline=(206, 200, 192),
            width=4,
        )
    for k in range(12):
        draw.line([(k * 64 - 60, HEIGHT), (k * 40 + 120, 170)], fill=(150, 152, 156), width=2)
    noise = rng.normal(0, 5, (HEIGHT, WIDTH, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def place(walk: Walk, frame: int) -> tuple[float, float]:
    """Where a figure's feet are in a frame."""
    share = (frame - walk.start) / (walk.end - walk.start)
    return walk.x0 + share * (walk.x1 - walk.x0), walk.y + 2 * np.sin(frame / 2)


def tracks(rng: np.random.Generator) -> list[Track]:
    """The boxes that a good detector would give: one or two pixels off."""
    result = []
    for walk in WALKS:
        frames = np.arange(walk.start, walk.end + 1)
        feet = np.array([place(walk, int(frame)) for frame in frames])
        boxes = np.stack(
            [
                feet[:, 0] - walk.tall * 0.2,
                feet[:, 1] - walk.tall * 1.02,
                feet[:, 0] + walk.tall * 0.2,
                feet[:, 1] + 3,
            ],
            1,
        )
        boxes += rng.normal(0, 1.2, boxes.shape)
        confidences = rng.uniform(0.75, 0.97, len(frames))
        result.append(
            Track(walk.person_id, frames, boxes.astype(np.float32), confidences.astype(np.float32))
        )
    return result


def main(folder: Path) -> None:
    """Write sample.mp4 and sample.persons.npz."""
    rng = np.random.default_rng(20261124)
    scene = background(rng)
    with av.open(
        folder / "sample.mp4", "w", options={"movflags": "faststart", "fflags": "bitexact"}
    ) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "27", "preset": "slow", "g": "50", "threads": "1"}
        for index in range(FRAMES):
            image = scene.copy()
            draw = ImageDraw.Draw(image)
            for walk in sorted(WALKS, key=lambda walk: walk.y):
                if walk.start <= index <= walk.end:
                    figure(
                        draw,
                        *place(walk, index),
                        walk.tall,
                        LOOKS[walk.look],
                        index / 3 + walk.person_id,
                    )
            pixels = (
                (np.asarray(image) + rng.normal(0, 3, (HEIGHT, WIDTH, 1)))
                .clip(0, 255)
                .astype(np.uint8)
            )
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    save_tracks(folder / "sample.persons.npz", tracks(rng))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
