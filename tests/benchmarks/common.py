"""What the benchmarks share: the machine in one line, clips that are made once, and the truth of PETS."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "tests" / "sample"))


def print_machine() -> None:
    """Print processor, cores and versions."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(
        (line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line), "unknown"
    )
    avx512 = "avx512f" in cpu
    print(
        f"processor: {model}, {os.cpu_count()} cores, avx512={avx512}; Python {platform.python_version()}"
    )
    names = ("av", "numpy", "onnxruntime", "pillow", "torch", "opencv-python-headless")
    print("versions:", ", ".join(f"{name} {_version(name)}" for name in names))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not here"


def clip_1080p(frames: int, gop: int) -> tuple[Path, Path]:
    """A generated 1920x1080 h264 clip, 25 frames/s, 10 persons in all frames, and its tracks; made once and kept."""
    import av
    from make_sample import LOOKS, figure
    from PIL import Image, ImageDraw

    from streamproc.tracks import save_tracks
    from streamproc.types import Track

    folder = Path(tempfile.gettempdir()) / "streamproc-benchmarks"
    folder.mkdir(exist_ok=True)
    video, tracks = (
        folder / f"people-{frames}-{gop}.mp4",
        folder / f"people-{frames}-{gop}.persons.npz",
    )
    if tracks.is_file():
        return video, tracks
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(90, 170, (54, 96, 3), np.uint8)).resize(
        (1920, 1080), Image.Resampling.BICUBIC
    )
    scene = np.asarray(coarse)
    grain = [rng.normal(0, 2, (1080, 1920, 1)).astype(np.int8) for _ in range(4)]
    looks = list(LOOKS.values())
    persons = range(10)
    tall = [300 + 25 * (i % 5) for i in persons]
    x = np.array(
        [[180 * i + 120 + 70 * np.sin(t / 60 + i) for i in persons] for t in range(frames)]
    )
    y = np.array(
        [[520 + 110 * (i % 5) + 8 * np.sin(t / 40 + i) for i in persons] for t in range(frames)]
    )
    part = video.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26", "g": str(gop)}
        for t in range(frames):
            image = Image.fromarray((scene + grain[t % 4]).clip(0, 255).astype(np.uint8))
            draw = ImageDraw.Draw(image)
            for i in persons:
                figure(draw, x[t, i], y[t, i], tall[i], looks[i % len(looks)], t / 4 + i)
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    part.replace(video)
    boxes = [
        np.stack(
            [
                x[:, i] - tall[i] * 0.2,
                y[:, i] - tall[i] * 1.02,
                x[:, i] + tall[i] * 0.2,
                y[:, i] + 4,
            ],
            1,
        )
        for i in persons
    ]
    save_tracks(
        tracks,
        [
            Track(
                i + 1, np.arange(frames), boxes[i].astype(np.float32), np.ones(frames, np.float32)
            )
            for i in persons
        ],
    )
    return video, tracks


def repeated(video: Path, tracks: Path, times: int) -> tuple[Path, Path]:
    """The same clip `times` times on end, copied packet by packet, with its tracks going on."""
    import av

    from streamproc.tracks import load_tracks, save_tracks
    from streamproc.types import Track

    long_video, long_tracks = (
        video.with_stem(f"{video.stem}-x{times}"),
        tracks.with_name(f"{video.stem}-x{times}.persons.npz"),
    )
    if long_tracks.is_file():
        return long_video, long_tracks
    frames = max(int(track.frame_indices[-1]) for track in load_tracks(tracks).tracks) + 1
    with av.open(str(long_video), "w") as outside:
        stream = None
        for k in range(times):
            with av.open(str(video)) as inside:
                source = inside.streams.video[0]
                stream = stream or outside.add_stream_from_template(source)
                ticks = round(frames / (source.average_rate * source.time_base))
                for packet in inside.demux(source):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = (
                            packet.pts + k * ticks,
                            packet.dts + k * ticks,
                            stream,
                        )
                        outside.mux(packet)
    save_tracks(
        long_tracks,
        [
            Track(
                track.person_id,
                np.concatenate([track.frame_indices + k * frames for k in range(times)]),
                np.tile(track.boxes_xyxy, (times, 1)),
                np.tile(track.confidences, times),
            )
            for track in load_tracks(tracks).tracks
        ],
    )
    return long_video, long_tracks


def pets() -> tuple[Path, Path] | None:
    """PETS09-S2L1 and its tracks, where the research data are."""
    video = SHARED / "data" / "videos" / "vtest.avi"
    return (
        (video, SHARED / "data" / "persons" / "PETS09-S2L1.canonical_persons.npz")
        if video.is_file()
        else None
    )
