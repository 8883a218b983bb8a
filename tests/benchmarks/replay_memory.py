"""Peak memory of `streamproc replay` on the 1080p clip and on one ten times as long: one process each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile

from common import clip_1080p, print_machine, repeated


def peak_mib(video: str, tracks: str) -> float:
    """Peak resident MiB of a replay in a process of its own."""
    out = tempfile.mkdtemp()
    code = (
        "import resource, sys; from streamproc import replay;"
        "replay(sys.argv[1], persons=sys.argv[2], out=sys.argv[3]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, video, tracks, out], capture_output=True, text=True, check=True
    )
    shutil.rmtree(out)
    return float(done.stdout)


def main() -> None:
    """Print both peaks."""
    print_machine()
    clip = clip_1080p(2000, 50)
    short, long = (peak_mib(*map(str, files)) for files in (clip, repeated(*clip, 10)))
    print(
        f"1080p, 10 persons, 50 crops each: {short:.0f} MiB with 2,000 frames, {long:.0f} MiB with 20,000"
    )
    print(f"ratio={long / short:.2f} long/short")


if __name__ == "__main__":
    main()
