"""The recipe of our weights: it runs, goes on after a stop, and leaves weights that load."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = 54
FRAMES = 6
# The recipe does not train on the first one.
VIDEOS = ("e9544e9816", "0000000001", "0000000002", "0000000003", "0000000004")


def picture(seed: int) -> bytes:
    """A person of 64x32 that looks the same for the same seed, as JPEG."""
    rng = np.random.default_rng(seed)
    parts = Image.fromarray(rng.integers(0, 256, (6, 3, 3), np.uint8)).resize(
        (32, 64), Image.Resampling.NEAREST
    )
    file = io.BytesIO()
    parts.save(file, "JPEG")
    return file.getvalue()


def archive(path: Path, names: dict[str, int]) -> None:
    """Write a tar of pictures, each named and made from its seed."""
    with tarfile.open(path, "w") as tar:
        for name, seed in names.items():
            content = picture(seed)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def data(tmp_path):
    """A folder with archives named as the real ones.

    One has people before two cameras, the other videos with three people in each frame.
    """
    market = {}
    for i, camera, k in product(range(1, PEOPLE + 1), (1, 2), (1, 2)):
        market[f"{i:04d}_c{camera}s1_{k:06d}_00.jpg"] = i
    videos = {}
    for (number, video), frame, who in product(enumerate(VIDEOS, 1), range(FRAMES), range(3)):
        videos[f"{video}_{25 * frame:06d}_{who:02d}.jpg"] = 1000 * number + who
    archive(tmp_path / "market1501_train.tar", market)
    archive(tmp_path / "people_crops.tar", videos)
    return tmp_path


def distill(data: Path, out: Path, *arguments: str) -> str:
    """Run the recipe on these archives with small steps; return what it prints."""
    script = ROOT / "models" / "distill.py"
    teacher = ROOT / "models" / "osnet_x0_25_ours.safetensors"
    command = [sys.executable, script, "--data", data, "--teachers", teacher, "--out", out]
    command += ["--batch", "32", "--shards", "1", "--identity", "0.05", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_recipe_trains_goes_on_and_leaves_weights(data, tmp_path) -> None:
    """A resumed training takes further steps and leaves finite weights that differ."""
    from streamproc.networks.weights import read_checkpoint
    from streamproc.reid.osnet import from_state

    out = tmp_path / "out"
    first = distill(data, out, "--phases", "64x32:0.03:1e-3:forced", "64x32:0.03:1e-3")
    assert f"{4 * PEOPLE + 3 * FRAMES * len(VIDEOS)} crops" in first
    begun = from_state(read_checkpoint(out / "ema.pth"))
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    # The second run goes on from there, however long the first steps took.
    done_minutes = state["elapsed_s"] / 60
    distill(
        data,
        out,
        "--resume",
        "--phases",
        f"64x32:{done_minutes + 0.03}:1e-3",
        "64x32:0.04:1e-3:fixed",
    )
    gone_on = from_state(read_checkpoint(out / "ema.pth"))
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] > state["step"] > 0
    images = torch.rand(4, 3, 256, 128)
    with torch.no_grad():
        before, after = begun(images), gone_on(images)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
