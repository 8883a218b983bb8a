"""Peak memory of a replay of a clip and of a longer one, a process each.

    replay_memory.py
    replay_memory.py --alone [VIDEO] [--times SHORT LONG] [--frames N] [--every-frames K]

Without options: the 1080p clip with its tracks, and one ten times as long. `--alone`: a video whose
people are found in its frames, by default Venice-2 (1080p) where the research data are, 4 and 40
times on end, which takes long: `--frames` takes the first frames of the video
alone (they must end where a group of pictures does), and `--every-frames` looks less often.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, SHARED, clip_1080p, print_machine, repeated, write_repeated

SCRIPT = ROOT / "tests" / "scripts" / "replay_peak_memory.py"
MOST_MIB = 700


def peak_mib(*arguments: object) -> float:
    """Peak resident MiB of a replay in a process of its own; the script's arguments but OUT."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(SCRIPT), out, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def with_tracks() -> None:
    """Print both peaks of the clip with tracks."""
    clip = clip_1080p(2000, 50)
    short = peak_mib(*clip)
    long = peak_mib(*repeated(*clip, 10))
    peaks = f"{short:.0f} MiB with 2,000 frames, {long:.0f} MiB with 20,000"
    print(f"1080p, 10 persons, 50 crops each: {peaks}")
    print(f"ratio={long / short:.2f} long/short")


def alone(video: Path, times: list[int], *, frames: int, every: int) -> None:
    """Print both peaks of a video alone that is repeated so often."""
    peaks = []
    for count in times:
        with tempfile.TemporaryDirectory() as folder:
            longer = Path(folder) / f"x{count}{video.suffix}"
            write_repeated(video, longer, times=count, frames=frames)
            peaks.append(peak_mib(longer, "--every-frames", every))
        print(f"{video.name}, {frames} frames {count} times: {peaks[-1]:.0f} MiB", flush=True)
    ratio = peaks[-1] / peaks[0]
    print(f"ratio={ratio:.2f} long/short; most {max(peaks):.0f} MiB (asked: {MOST_MIB})")


def frame_count(video: Path) -> int:
    """How many frames a video has."""
    from streamproc.video import open_video

    with open_video(video) as opened:
        return opened.frame_count


def main() -> None:
    """Print the peaks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    venice = SHARED / "data/trackers/Venice-2/video.mp4"
    parser.add_argument("--alone", nargs="?", type=Path, const=venice, metavar="VIDEO")
    parser.add_argument("--times", nargs=2, type=int, default=[4, 40], metavar=("SHORT", "LONG"))
    parser.add_argument("--frames", type=int, default=0, help="of the video; 0: all")
    parser.add_argument("--every-frames", type=int, default=0, help="as detector.every_frames")
    args = parser.parse_args()
    print_machine()
    if args.alone is None:
        with_tracks()
        return
    frames = args.frames or frame_count(args.alone)
    alone(args.alone, args.times, frames=frames, every=args.every_frames)


if __name__ == "__main__":
    main()
