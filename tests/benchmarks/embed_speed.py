"""The embedder's speed, both sides in one run: eager torch as torchreid does it, beside ours.

    python tests/benchmarks/embed_speed.py               # CPU, and GPU where there is one
    python tests/benchmarks/embed_speed.py --part gpu

CPU: batches of 8 through PIL, ToTensor and Normalize into eager float32 with the published weights
as they are, beside `Embedder`; the networks alone; and `Embedder` beside bare onnxruntime on
tensors that are ready. GPU: eager float32 beside ours, crops on the GPU and from the host, and
which share of the memory bandwidth ours reaches. The rounds of all sides take turns, so that a load
from elsewhere meets all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import SHARED, print_machine
from PIL import Image
from torchvision import transforms

from streamproc.networks.parallel import NETWORK_THREAD
from streamproc.networks.sessions import open_session
from streamproc.networks.weights import read_checkpoint
from streamproc.reid import Embedder, find_weights
from streamproc.reid.gpu_network import GpuNetwork
from streamproc.reid.onnx_backend import BATCH_CROPS
from streamproc.reid.osnet import ConvBN, LightConv3x3, OSNet, OSNetConfig, from_state
from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise
from streamproc.reid.torch_backend import BATCH_SIZES, TorchBackend, _compile, seconds_a_run

if TYPE_CHECKING:
    from collections.abc import Callable

    Clock = Callable[[], float]

PUBLISHED = SHARED / "models" / "osnet_x0_25_msmt17.pth"
THEIR_BATCH = 8
PIPELINE_CROPS = 32


@dataclass
class Side:
    """One way of embedding `crops` crops a call, and the speeds of its rounds."""

    name: str
    crops: int
    run: object
    speeds: list[float] = field(default_factory=list)

    def measure(self, seconds: float, clock: Clock) -> None:
        """One round: whole calls for at least `seconds`."""
        calls, start = 0, clock()
        while (spent := clock() - start) < seconds or not calls:
            self.run()
            calls += 1
        self.speeds.append(calls * self.crops / spent)

    def __str__(self) -> str:
        low, high = min(self.speeds), max(self.speeds)
        return (
            f"{self.name}: {statistics.median(self.speeds):.0f} crops/s ({low:.0f} to {high:.0f})"
        )


def print_ratio(one: Side, other: Side, what: str) -> None:
    """How many times `other` is as fast, round by round."""
    ratios = sorted(mine / theirs for theirs, mine in zip(one.speeds, other.speeds, strict=True))
    print(f"ratio={statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}): {what}")


def as_published(weights: Path) -> OSNet:
    """Eager OSNet with every weight as the file has it, denormal ones too."""
    state = {
        name: value
        for name, value in read_checkpoint(weights).items()
        if not name.startswith("classifier.")
    }
    network = OSNet(OSNetConfig.from_state(state))
    network.load_state_dict(state, strict=True)
    return network.eval()


def people(count: int) -> np.ndarray:
    """Crops (count, 256, 128, 3): Market's test people where they are, else noise."""
    files = sorted((SHARED / "data" / "reid" / "market1501_test100").glob("*.jpg"))[:count]
    if len(files) < count:
        return np.random.default_rng(0).integers(0, 256, (count, 256, 128, 3), np.uint8)
    size = (128, 256)
    images = (
        Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR) for path in files
    )
    return np.stack([np.asarray(image) for image in images])


def cpu_part(weights: Path, *, threads: int, rounds: int, seconds: float, clock: Clock) -> None:
    """Eager torch beside `Embedder`, both with `threads`."""
    torch.set_num_threads(threads)
    network = as_published(weights)
    steps = [transforms.ToPILImage(), transforms.Resize((256, 128)), transforms.ToTensor()]
    preprocess = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    with tempfile.TemporaryDirectory() as cache:
        found = find_weights(str(weights), cache_folder=Path(cache))
        embedder = Embedder(found, threads=threads, device="cpu")
        session = NETWORK_THREAD.submit(lambda: open_session(found, threads)).result()
    name = session.get_inputs()[0].name
    crops = people(32)
    ready = normalise(crops)
    batches = torch.from_numpy(ready[:THEIR_BATCH])

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return network(torch.stack([preprocess(crop) for crop in crops[:THEIR_BATCH]]))

    @torch.no_grad()
    def their_network() -> torch.Tensor:
        return network(batches)

    def bare() -> None:
        for start in range(0, len(ready), BATCH_CROPS):
            session.run(None, {name: ready[start : start + BATCH_CROPS]})

    vectors = embedder.embed(crops[:THEIR_BATCH])
    expected = theirs().numpy()
    least = float(((vectors * expected).sum(1) / np.linalg.norm(expected, axis=1)).min())
    measured = "" if clock is time.perf_counter else ", seconds of processor time"
    print(f"CPU, {threads} threads{measured}, {weights.name} as published")
    print(f"least cosine of ours to eager {least:.6f}")
    sides = [
        Side("eager torch, torchreid's way, batch 8, crops in, vectors out", THEIR_BATCH, theirs),
        Side("ours, crops in, vectors out", len(crops), lambda: embedder.embed(crops)),
        Side("eager torch, the network alone, batch 8", THEIR_BATCH, their_network),
        Side(
            f"onnxruntime, the network alone, batch {BATCH_CROPS}",
            len(crops),
            lambda: NETWORK_THREAD.submit(bare).result(),
        ),
    ]
    for number in range(rounds + 1):
        for side in sides:
            side.measure(seconds, clock)
        if number == 0:  # warm now
            for side in sides:
                side.speeds.clear()
    for side in sides:
        print(side)
    eager, ours, eager_network, our_network = sides
    print_ratio(eager, ours, "ours / torchreid's way, crops in, vectors out (asked: 5)")
    print_ratio(eager_network, our_network, "the networks alone")
    print_ratio(
        our_network,
        ours,
        "ours with its preprocessing / bare onnxruntime on ready tensors (asked: 0.85)",
    )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def bytes_a_crop(weights: Path) -> float:
    """Least memory traffic in half precision: each layer reads and writes its values once."""
    moved = [float(np.prod((256, 128, 3)))]

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        moved.append(2.0 * (inputs[0].numel() + output.numel()))

    network = from_state(read_checkpoint(weights))
    for module in network.modules():
        if isinstance(module, ConvBN | LightConv3x3 | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 256, 128))
    return sum(moved)


def bytes_a_second(device: str, mib: int) -> float:
    """Memory bandwidth, measured: a copy reads and writes."""
    source = torch.ones(mib * 1024 * 1024, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / seconds_a_run(target.copy_, source)


def gpu_part(weights: Path, *, device: str, sizes: list[int], runs: int) -> None:
    """Eager float32 beside ours for each batch size, crops on the device and from the host.

    Eager's crops are normalised already, ours are pixels.
    """
    on_gpu = device == "cuda"
    name = (
        torch.cuda.get_device_name()
        if on_gpu
        else "torch's CPU device: figures of no meaning, a test of this code"
    )
    eager = as_published(weights).to(device)
    network = GpuNetwork(from_state(read_checkpoint(weights))).to(device)
    compiler = _compile if on_gpu else None
    backend = TorchBackend(
        network, device=device, sizes=sorted({*BATCH_SIZES, *sizes}), compiler=compiler
    )
    start = time.perf_counter()
    backend.compile_now()
    compiled = f"compiled in {time.perf_counter() - start:.0f} s"
    print(f"GPU: {name}; {weights.name}; batch sizes {backend.sizes}; {compiled}")
    bandwidth = bytes_a_second(device, 1024 if on_gpu else 16)
    least_bytes = bytes_a_crop(weights)
    print(
        f"copies {bandwidth / 1e9:.0f} GB/s; at least {least_bytes / 1e6:.1f} MB a crop", flush=True
    )
    for size in sizes:
        pixels = np.random.default_rng(size).integers(0, 256, (size, 256, 128, 3), np.uint8)
        there = torch.from_numpy(pixels).to(device)
        host = torch.from_numpy(normalise(pixels))
        ready = host.to(device)
        with torch.inference_mode():
            least = torch.nn.functional.cosine_similarity(
                eager(ready), backend.run_on_device(there)
            ).min()
            functions = (
                partial(eager, ready),
                partial(backend.run_on_device, there),
                partial(_from_host, eager, device, host),
                partial(backend.run, pixels),
            )
            eager_on, ours_on, eager_host, ours_host = (
                size / _seconds(f, runs, on_gpu=on_gpu) for f in functions
            )
        share = ours_on * least_bytes / bandwidth
        parts = [
            f"on the device {_compared(eager_on, ours_on)}, {share:.0%} of the memory bandwidth",
            f"from the host {_compared(eager_host, ours_host)}",
            f"least cosine {float(least):.5f}",
        ]
        print(f"batch {size}: {'; '.join(parts)}", flush=True)

    count = PIPELINE_CROPS if on_gpu else 2
    cut = [crop[: 60 + 5 * i, : 30 + 2 * i].copy() for i, crop in enumerate(people(count))]

    def resized() -> torch.Tensor:
        images = [
            Image.fromarray(crop).resize((128, 256), Image.Resampling.BILINEAR) for crop in cut
        ]
        with torch.inference_mode():
            return eager(torch.from_numpy(normalise(np.stack(images))).to(device)).cpu()

    theirs, ours = (
        count / _seconds(f, runs, on_gpu=on_gpu) for f in (resized, partial(backend.run, cut))
    )
    print(
        f"{count} crops of as many sizes, from the host, as a worker's batch, eager's resized by "
        f"Pillow: {_compared(theirs, ours)}"
    )


def _compared(eager: float, ours: float) -> str:
    return f"eager {eager:.0f} ours {ours:.0f} crops/s ratio={ours / eager:.2f}"


def _from_host(network: OSNet, device: str, images: torch.Tensor) -> torch.Tensor:
    return network(images.to(device)).cpu()


def _seconds(function: Callable[[], object], runs: int, *, on_gpu: bool) -> float:
    """Median of five means of `runs` calls, the device's work included."""
    function()
    means = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(runs):
            function()
        if on_gpu:
            torch.cuda.synchronize()
        means.append((time.perf_counter() - start) / runs)
    return statistics.median(means)


def main() -> None:
    """Print the machine, and what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--part", choices=["cpu", "gpu", "both"], default="both")
    parser.add_argument("--weights", type=Path, default=PUBLISHED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in each round")
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor: for a machine that others load",
    )
    parser.add_argument("--device", default="cuda", help="of the GPU part; cpu only tries its code")
    parser.add_argument("--sizes", type=int, nargs="+", default=[*BATCH_SIZES, 512])
    parser.add_argument("--runs", type=int, default=30, help="of each measurement of the GPU part")
    args = parser.parse_args()
    print_machine()
    if args.part != "gpu":
        if args.clock == "processor" and args.threads != 1:
            parser.error(
                "--clock processor counts threads that wait for each other: give --threads 1"
            )
        clock = time.process_time if args.clock == "processor" else time.perf_counter
        cpu_part(
            args.weights,
            threads=args.threads,
            rounds=args.rounds,
            seconds=args.seconds,
            clock=clock,
        )
    if args.part != "cpu":
        if args.device == "cuda" and not torch.cuda.is_available():
            print("GPU: none here, so nothing was measured")
        else:
            gpu_part(args.weights, device=args.device, sizes=args.sizes, runs=args.runs)


if __name__ == "__main__":
    main()
