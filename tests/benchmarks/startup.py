"""Start-up: `streamproc --help` beside `python -c pass`, medians of 20."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import print_machine


def median_seconds(command: list[str]) -> float:
    """Median wall time of 20 runs."""
    spent = []
    for _ in range(20):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main() -> None:
    """Print both."""
    print_machine()
    ours = median_seconds([sys.executable, "-m", "streamproc", "--help"])
    bare = median_seconds([sys.executable, "-c", "pass"])
    print(f"streamproc --help {ours:.3f} s, python -c pass {bare:.3f} s")
    print(f"ratio={ours / bare:.2f}")


if __name__ == "__main__":
    main()
