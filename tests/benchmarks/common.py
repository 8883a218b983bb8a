"""What the benchmarks share.

The machine in two lines, clips that are made once, PETS, and the comparison of two commits.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from fractions import Fraction
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "sample")]  # for `models`, and what draws people


def print_machine() -> None:
    """Print processor, cores and versions."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    processor = f"{names[0] if names else 'unknown'}, {os.cpu_count()} cores"
    avx512 = "avx512f" in cpu
    print(f"processor: {processor}, avx512={avx512}; Python {platform.python_version()}")
    libraries = ("av", "numpy", "onnxruntime", "pillow", "torch", "opencv-python-headless")
    print("versions:", ", ".join(f"{name} {_version(name)}" for name in libraries))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not here"


def add_comparison(parser: argparse.ArgumentParser, *, runs: int) -> None:
    """Add the options of a comparison with another commit."""
    parser.add_argument("--runs", type=int, default=runs, help="of each side")
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="measure the code of COMMIT and this code in turn, and print how they compare",
    )


def compare_commits(
    commit: str, measure: Callable[[Path], dict[str, float]], *, runs: int
) -> dict[str, float]:
    """Measure the code of `commit` and this code in turn; print and return the ratios of medians.

    `measure` is given the root of a checkout, runs its code in a process of its own (`run_python`)
    and returns figures by name, of which less is better. What each side finds at first, such as an
    empty cache, is measured once and not counted.
    """
    with checkout(commit) as old:
        sides = {commit: old, "here": ROOT}
        for tree in sides.values():
            measure(tree)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for number in range(runs):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for side in order:
                found[side].append(measure(sides[side]))
    ratios = {}
    for figure in found["here"][0]:
        values = {side: [each[figure] for each in measured] for side, measured in found.items()}
        before, now = (statistics.median(values[side]) for side in (commit, "here"))
        spread = ", ".join(
            f"{side} {statistics.median(each):.4g} ({min(each):.4g} to {max(each):.4g})"
            for side, each in values.items()
        )
        ratios[figure] = now / before
        print(f"{figure}: {spread}; ratio={ratios[figure]:.3f} here/{commit}, medians of {runs}")
    return ratios


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary git worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", str(tree), commit], check=True, capture_output=True
        )
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run_python(tree: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run Python on the code of a checkout, with this environment's libraries; its stdout."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,  # `python -m` looks here first
        env=os.environ | {"PYTHONPATH": str(tree)} | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def clip_1080p(frames: int, gop: int) -> tuple[Path, Path]:
    """A generated 1920x1080 h264 clip of 25 frames/s with 10 persons in all frames, and its tracks.

    It is made once and kept.
    """
    from streamproc.tracks import save_tracks
    from streamproc.types import Track

    folder = Path(tempfile.gettempdir()) / "streamproc-benchmarks"
    folder.mkdir(exist_ok=True)
    video = folder / f"people-{frames}-{gop}.mp4"
    tracks = folder / f"people-{frames}-{gop}.persons.npz"
    if tracks.is_file():
        return video, tracks
    # Places of the feet, (frames, persons).
    person, t = np.meshgrid(np.arange(10), np.arange(frames))
    x = 180 * person + 120 + 70 * np.sin(t / 60 + person)
    y = 520 + 110 * (person % 5) + 8 * np.sin(t / 40 + person)
    tall = 300 + 25 * (np.arange(10) % 5)
    part = video.with_suffix(".part.mp4")
    _draw(part, x, y, tall, gop=gop)
    part.replace(video)
    boxes = np.stack([x - tall * 0.2, y - tall * 1.02, x + tall * 0.2, y + 4], 2)
    everywhere = np.arange(frames)
    sure = np.ones(frames, np.float32)
    made = [Track(i + 1, everywhere, boxes[:, i].astype(np.float32), sure) for i in range(10)]
    save_tracks(tracks, made)
    return video, tracks


def _draw(path: Path, x: np.ndarray, y: np.ndarray, tall: np.ndarray, *, gop: int) -> None:
    """Encode a clip of persons with their feet at x and y (frames, persons)."""
    import av
    from make_sample import LOOKS, figure
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(90, 170, (54, 96, 3), np.uint8))
    scene = np.asarray(coarse.resize((1920, 1080), Image.Resampling.BICUBIC))
    grain = [rng.normal(0, 2, (1080, 1920, 1)).astype(np.int8) for _ in range(4)]
    looks = list(LOOKS.values())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26", "g": str(gop)}
        for index in range(len(x)):
            pixels = (scene + grain[index % 4]).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            draw = ImageDraw.Draw(image)
            for i in range(len(tall)):
                look = looks[i % len(looks)]
                figure(draw, x[index, i], y[index, i], int(tall[i]), look, index / 4 + i)
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def repeated(video: Path, tracks: Path, times: int) -> tuple[Path, Path]:
    """The same clip `times` times on end, copied packet by packet, with its tracks going on."""
    from streamproc.tracks import load_tracks, save_tracks
    from streamproc.types import Track

    long_video = video.with_stem(f"{video.stem}-x{times}")
    long_tracks = tracks.with_name(f"{video.stem}-x{times}.persons.npz")
    if long_tracks.is_file():
        return long_video, long_tracks
    loaded = load_tracks(tracks).tracks
    frames = max(int(track.frame_indices[-1]) for track in loaded) + 1
    write_repeated(video, long_video, times=times, frames=frames)
    longer = []
    for track in loaded:
        indices = np.concatenate([track.frame_indices + k * frames for k in range(times)])
        boxes = np.tile(track.boxes_xyxy, (times, 1))
        longer.append(Track(track.person_id, indices, boxes, np.tile(track.confidences, times)))
    save_tracks(long_tracks, longer)
    return long_video, long_tracks


def write_repeated(video: Path, into: Path, *, times: int, frames: int) -> None:
    """Write the first `frames` frames of a clip `times` times on end, copied packet by packet.

    `frames` must end where a group of pictures does, or where the clip does.
    """
    import av

    with av.open(str(into), "w") as outside:
        stream = None
        for k in range(times):
            with av.open(str(video)) as inside:
                source = inside.streams.video[0]
                stream = stream or outside.add_stream_from_template(source)
                ticks = round(frames / (source.average_rate * source.time_base))
                packets = (packet for packet in inside.demux(source) if packet.size)
                for packet in islice(packets, frames):
                    packet.pts += k * ticks
                    packet.dts += k * ticks
                    packet.stream = stream
                    outside.mux(packet)


def pets() -> tuple[Path, Path] | None:
    """PETS09-S2L1 and its tracks, where the research data are."""
    video = SHARED / "data" / "videos" / "vtest.avi"
    tracks = SHARED / "data" / "persons" / "PETS09-S2L1.canonical_persons.npz"
    return (video, tracks) if video.is_file() else None
