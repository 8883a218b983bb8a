"""Replay beside the plain way, and beside its own stages run alone.

    replay_speed.py [--runs N] [--clip TEXT]
    replay_speed.py --against COMMIT [--runs N] [--clip TEXT]    the same replay by an older commit

The plain way: OpenCV reads every frame and converts it to RGB, crops are kept, OSNet runs in eager
torch in batches of 8, Pillow writes WebP at its default; one after the other. Both sides use the
package's own weights, up to 50 crops a person, 8 of them embedded, and write 256x256 animations.
Imports and the plain side's model loading are not counted; everything that `replay` does is.

With --against both commits run `streamproc replay` as processes in turn. Of each come the seconds
that it says of itself, without imports, and those of the whole process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from common import (
    ROOT,
    add_comparison,
    clip_1080p,
    compare_commits,
    pets,
    print_machine,
    run_python,
)
from PIL import Image, ImageOps
from torchvision import transforms

from streamproc import replay
from streamproc.animation import encode_webp
from streamproc.crops import Buckets, CropOptions, PixelStore, cut_frames, plan_crops, resized
from streamproc.networks.weights import read_checkpoint
from streamproc.reid import Embedder, find_weights, person_vector
from streamproc.reid.osnet import from_state
from streamproc.tracks import fit_to_video, load_tracks
from streamproc.video import open_video

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path("~/.cache/streamproc").expanduser()
PUBLISHED = transforms.Compose(
    [
        transforms.Resize((256, 128)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def plain(video: Path, tracks_path: Path, out: Path, model: torch.nn.Module) -> float:
    """Seconds of the plain way."""
    start = time.perf_counter()
    wanted: dict[int, list[tuple[int, np.ndarray]]] = {}
    for track in load_tracks(tracks_path).tracks:
        for row in np.unique(np.linspace(0, len(track) - 1, 50).round().astype(int)):
            wanted.setdefault(int(track.frame_indices[row]), []).append(
                (track.person_id, track.boxes_xyxy[row])
            )
    crops: dict[int, list[Image.Image]] = {}
    capture, index = cv2.VideoCapture(str(video)), 0
    while True:
        good, bgr = capture.read()
        if not good:
            break
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        for person, box in wanted.get(index, ()):
            x0, y0 = np.floor(box[:2]).clip(0).astype(int)
            x1, y1 = np.ceil(box[2:]).astype(int)
            crops.setdefault(person, []).append(Image.fromarray(rgb[y0:y1, x0:x1].copy()))
        index += 1
    vectors = {}
    with torch.inference_mode():
        for person, images in crops.items():
            places = np.unique(np.linspace(0, len(images) - 1, 8).round().astype(int))
            batch = torch.stack([PUBLISHED(images[place]) for place in places])
            features = torch.nn.functional.normalize(model(batch))
            vectors[person] = torch.nn.functional.normalize(features.mean(0, keepdim=True))
    for person, images in crops.items():
        frames = [ImageOps.pad(image, (256, 256)) for image in images]
        frames[0].save(
            out / f"{person}.webp", save_all=True, append_images=frames[1:], duration=100, loop=0
        )
    return time.perf_counter() - start


def by_commit(tree: Path, video: Path, tracks_path: Path) -> dict[str, float]:
    """Seconds of a whole replay by the code of a checkout."""
    with tempfile.TemporaryDirectory() as out:
        command = ("replay", str(video), "--persons", str(tracks_path), "--out", out, "--json")
        start = time.perf_counter()
        said = run_python(tree, "-m", "streamproc", *command, "-q")
        whole = time.perf_counter() - start
    return {"replay, s": json.loads(said)["seconds"]["wall"], "its whole process, s": whole}


def ours(video: Path, tracks_path: Path, out: Path) -> float:
    """Seconds of a whole replay."""
    start = time.perf_counter()
    replay(video, persons=tracks_path, out=out)
    return time.perf_counter() - start


def alone(video_path: Path, tracks_path: Path) -> dict[str, float]:
    """Seconds of decoding the planned frames, of embedding and of WebP, each alone, all cores."""
    seconds = {}
    with open_video(video_path) as video:
        tracks = fit_to_video(
            load_tracks(tracks_path),
            frame_count=video.frame_count,
            width=video.width,
            height=video.height,
        )
        plan = plan_crops(
            tracks.tracks,
            video.frame_table,
            width=video.width,
            height=video.height,
            options=CropOptions(),
        )
        start = time.perf_counter()
        for _ in video.frames(plan.frame_indices):
            pass
        seconds["decode"] = time.perf_counter() - start
        store, buckets, full = PixelStore(2**31), Buckets(plan, crops_embedded=8), []
        for frame in video.frames(plan.frame_indices):
            full += buckets.add(frame.frame_index, *cut_frames([frame], plan.cuts, store))
    embedder = Embedder(find_weights(None, cache_folder=CACHE))
    pixels = np.stack([resized(bucket.crops[i].pixels) for bucket in full for i in bucket.embedded])
    start = time.perf_counter()
    person_vector(embedder.embed(pixels))
    seconds["embed"] = time.perf_counter() - start
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda bucket: encode_webp(bucket.crops), full))
    seconds["webp"] = time.perf_counter() - start
    return seconds


def compare(name: str, video: Path, tracks: Path, model: torch.nn.Module, *, runs: int) -> None:
    """Print the medians of all three sides for one clip."""
    timed: dict[str, list[float]] = {"plain": [], "ours": [], "alone": []}
    for _ in range(runs):
        out = Path(tempfile.mkdtemp())
        timed["plain"].append(plain(video, tracks, out, model))
        timed["ours"].append(ours(video, tracks, out))
        parts = alone(video, tracks)
        timed["alone"].append(sum(parts.values()))
        shutil.rmtree(out)
    medians = {side: statistics.median(values) for side, values in timed.items()}
    stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in parts.items())
    print(f"{name}: plain {medians['plain']:.2f} s, replay {medians['ours']:.2f} s")
    print(f"  stages alone {medians['alone']:.2f} s ({stages})")
    print_ratios("ratio", timed["plain"], timed["ours"], "plain/replay")
    print_ratios("cost", timed["ours"], timed["alone"], "replay/alone")


def print_ratios(name: str, ones: list[float], others: list[float], what: str) -> None:
    """Print the median of the ratios, run by run, and the least and the greatest."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    least, greatest = min(ratios), max(ratios)
    median = statistics.median(ratios)
    print(f"  {name}={median:.2f} {what} (min {least:.2f}, max {greatest:.2f})")


def main() -> None:
    """Print the comparisons for each clip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_comparison(parser, runs=3)
    parser.add_argument("--clip", default="", help="only those that have this in their name")
    args = parser.parse_args()
    print_machine()
    clips: dict[str, Callable[[], tuple[Path, Path] | None]] = {
        "vtest.avi (PETS09-S2L1)": pets,
        "1080p, 2000 frames, GOP 50": partial(clip_1080p, 2000, 50),
        "1080p, 2000 frames, GOP 250": partial(clip_1080p, 2000, 250),
    }
    model = from_state(read_checkpoint(ROOT / "models" / "osnet_x0_25_ours.safetensors"))
    for name, make in clips.items():
        clip = make() if args.clip in name else None
        if clip is None:
            continue
        if args.against is not None:
            print(name)
            measure = partial(by_commit, video=clip[0], tracks_path=clip[1])
            compare_commits(args.against, measure, runs=args.runs)
        else:
            compare(name, *clip, model, runs=args.runs)


if __name__ == "__main__":
    main()
