"""Peak memory of a replay of the 1080p clip and of one ten times as long, a process each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from common import ROOT, clip_1080p, print_machine, repeated

if TYPE_CHECKING:
    from pathlib import Path


SCRIPT = ROOT / "tests" / "scripts" / "replay_peak_memory.py"


def peak_mib(video: Path, tracks: Path) -> float:
    """Peak resident MiB of a replay in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(SCRIPT), str(video), str(tracks), out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Print both peaks."""
    print_machine()
    clip = clip_1080p(2000, 50)
    short = peak_mib(*clip)
    long = peak_mib(*repeated(*clip, 10))
    peaks = f"{short:.0f} MiB with 2,000 frames, {long:.0f} MiB with 20,000"
    print(f"1080p, 10 persons, 50 crops each: {peaks}")
    print(f"ratio={long / short:.2f} long/short")


if __name__ == "__main__":
    main()
