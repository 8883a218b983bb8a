"""A replay of a video alone, beside its parts run alone, and beside the plain way.

    video_alone.py [VIDEO ...] [--runs N] [--plain] [--no-parts]

Without videos: PETS09-S2L1 and Venice-2 (1080p), where the research data are. Of each come

- the seconds of a whole replay, and how often real time that is;
- those of its parts, one after the other: the detector on the frames that a replay looks at, with
  their decoding; the tracker on the same boxes; a replay with the saved tracks. Both cores work in
  each part where it has work for them. `--no-parts` leaves them out;
- with `--plain`: OpenCV reads all frames, YOLOX-nano at 416 in onnxruntime looks at each, a
  ByteTrack links the boxes, OSNet runs in eager torch, Pillow writes WebP; one after the other. The
  tracker there is ours, which takes no measurable part of the time.

Imports and loading of networks are not counted on the plain side, but in a replay they are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from common import ROOT, SHARED, print_machine
from replay_speed import plain

from streamproc import replay
from streamproc.networks.weights import read_checkpoint
from streamproc.pipeline.resources import finding_options, load_detector, video_limits
from streamproc.reid.osnet import from_state
from streamproc.settings import load_settings
from streamproc.tracks.detection.detector import Detector, find_weights
from streamproc.tracks.detection.found import frames_between_looks
from streamproc.tracks.detection.tracker import BufferedByteTracker, TrackerOptions
from streamproc.video import Video, open_video

CACHE = Path("~/.cache/streamproc").expanduser()
YOLOX_PX = 416
FRAMES_AT_ONCE = 8


class Plain:
    """A whole picture as OpenCV read it, as a detector takes it."""

    pts_seconds = 0.0

    def __init__(self, index: int, rgb: np.ndarray) -> None:
        self.frame_index = index
        self.height, self.width = rgb.shape[:2]
        self._rgb = rgb

    def crop_rgb(self, box: tuple[int, int, int, int], /) -> np.ndarray:
        """Return the pixels of a box."""
        x0, y0, x1, y1 = box
        return self._rgb[y0:y1, x0:x1]

    def scaled_rgb(self, width: int, height: int, /) -> np.ndarray:
        """Return the whole picture in another size."""
        return cv2.resize(self._rgb, (width, height), interpolation=cv2.INTER_LINEAR)


def rate_of(video: Video) -> float:
    """Frames a second, by the time stamps."""
    pts_seconds = video.frame_table.pts_seconds
    return (len(pts_seconds) - 1) / float(pts_seconds[-1] - pts_seconds[0])


def default_videos() -> list[Path]:
    """The two videos that the figures are asked of."""
    wanted = [SHARED / "data/videos/vtest.avi", SHARED / "data/trackers/Venice-2/video.mp4"]
    return [path for path in wanted if path.is_file()]


def parts(path: Path, tracks: Path, out: Path) -> dict[str, float]:
    """Seconds of the detector, the tracker and a replay with tracks, each alone."""
    settings = load_settings({}, config_file=None)
    detector = load_detector(settings)
    seconds = {}
    start = time.perf_counter()
    found = {}
    with open_video(path, limits=video_limits(settings)) as video:
        every = frames_between_looks(rate_of(video))
        frames = video.frames(np.arange(0, video.frame_count, every))
        waiting = []
        for frame in frames:
            waiting.append((frame.frame_index, detector.submit(frame)))
            if len(waiting) == FRAMES_AT_ONCE:
                for index, look in waiting:
                    found[index] = detector.read(look.result(), video.width, video.height)
                waiting = []
        for index, look in waiting:
            found[index] = detector.read(look.result(), video.width, video.height)
        seconds["detector"] = time.perf_counter() - start
        options = finding_options(settings).tracker
        linker = BufferedByteTracker(options, frames_per_second=rate_of(video))
        start = time.perf_counter()
        for index in range(video.frame_count):
            linker.update(index, found.get(index))
        seconds["tracker"] = time.perf_counter() - start
    start = time.perf_counter()
    replay(path, persons=tracks, out=out)
    seconds["replay with tracks"] = time.perf_counter() - start
    return seconds


def plain_seconds(path: Path, tracks: Path, out: Path) -> float:
    """Seconds of the plain way: find and link, then the plain replay of those tracks."""
    weights = find_weights(str(SHARED / "models/yolox_nano.onnx"), cache_folder=CACHE)
    looker = Detector(weights, threads=0, min_confidence=0.1, longest_px=YOLOX_PX)
    model = from_state(read_checkpoint(ROOT / "models" / "osnet_x0_25_ours.safetensors"))
    capture = cv2.VideoCapture(str(path))
    linker = BufferedByteTracker(TrackerOptions(), frames_per_second=30)
    start = time.perf_counter()
    index = 0
    while True:
        more, bgr = capture.read()
        if not more:
            break
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        detections = looker.detect(Plain(index, rgb))
        linker.update(index, detections)
        index += 1
    finding = time.perf_counter() - start
    return finding + plain(path, tracks, out, model)


def measure(path: Path, *, runs: int, with_parts: bool, with_plain: bool) -> None:
    """Print the figures of one video."""
    with open_video(path) as video:
        length_seconds = video.frame_count / rate_of(video)
        print(f"{path.name}: {video.width}x{video.height}, {length_seconds:.1f} s")
    whole = []
    summed = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            without_tracks = Path(folder) / path.name
            without_tracks.symlink_to(path.resolve())
            start = time.perf_counter()
            replay(without_tracks, out=out)
            whole.append(time.perf_counter() - start)
            print(f"  replay {whole[-1]:.2f} s", flush=True)
            tracks = next(out.rglob("tracks.npz"))
            if with_parts:
                each = parts(path, tracks, Path(folder) / "again")
                summed.append(sum(each.values()))
                said = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in each.items())
                print(f"  {said}", flush=True)
            if with_plain:
                took = plain_seconds(path, tracks, Path(folder))
                print(f"  plain {took:.2f} s, ratio={took / whole[-1]:.2f} (asked: 3)", flush=True)
    if summed:
        cost = statistics.median(a / b for a, b in zip(whole, summed, strict=True))
        print(f"  replay/parts={cost:.2f} (asked: 1.15)")
    print(f"  {length_seconds / statistics.median(whole):.2f} times real time")


def main() -> None:
    """Print the figures of each video."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="measure the plain way as well")
    parser.add_argument(
        "--no-parts", action="store_false", dest="parts", help="do not measure the parts alone"
    )
    args = parser.parse_args()
    print_machine()
    for path in args.videos or default_videos():
        measure(path, runs=args.runs, with_parts=args.parts, with_plain=args.plain)


if __name__ == "__main__":
    main()
