"""Replays VIDEO into OUT and prints its peak memory in MiB: OUT VIDEO [TRACKS] [--every-frames K].

Without a track file the video's people are found in its frames.
"""

from __future__ import annotations

import argparse
import resource

from streamproc import replay

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("video")
parser.add_argument("tracks", nargs="?")
parser.add_argument("--every-frames", type=int, default=0)
args = parser.parse_args()
replay(args.video, persons=args.tracks, out=args.out, detector__every_frames=args.every_frames)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
