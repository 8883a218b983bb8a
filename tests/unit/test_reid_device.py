"""Where the network runs: what `auto` means, why `cuda` is refused, and a GPU that fails.

The GPU of these tests is the real torch backend on torch's CPU device, with faults put into its
lowest call: the network's forward.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from programs import run_program

from streamproc.errors import MachineError, UsageError
from streamproc.networks.devices import DeviceLostError, why_no_gpu
from streamproc.pipeline.embed import EmbedStage
from streamproc.reid import Embedder, find_weights
from streamproc.reid.onnx_backend import OnnxBackend
from streamproc.types import Bucket, Crop

COSINE = 0.9999
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The package's own weights, with a cache of their own."""
    return find_weights(None, cache_folder=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cpu(weights):
    """An Embedder on the CPU."""
    return Embedder(weights, device="cpu")


def noise(count, seed=0):
    """Random crops (count, 256, 128, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 128, 3), np.uint8)


def cosines(one, other):
    """The cosines of the rows of two arrays of unit vectors."""
    return (one * other).sum(axis=1)


class Forward:
    """The network's forward with a limit on its batch.

    After a number of calls the device is lost.
    """

    def __init__(self, network, *, room=10**6, calls=10**6):
        self.network = network
        self.room = room
        self.calls = calls
        self.batches = []

    def __call__(self, pixels):
        """Run the network, or raise what torch would raise."""
        import torch

        self.batches.append(len(pixels))
        if len(self.batches) > self.calls:
            raise RuntimeError(f"{CUDA_ERROR}\nCompile with TORCH_USE_CUDA_DSA")
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(pixels)


@pytest.fixture
def gpu(weights):
    """Make an Embedder whose GPU has these faults; gives it and its forward."""
    torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")

    def make(device="cuda", **faults):
        from streamproc.networks.weights import read_checkpoint
        from streamproc.reid.osnet import PixelNetwork, folded, from_state
        from streamproc.reid.torch_backend import TorchBackend

        network = PixelNetwork(
            folded(from_state(read_checkpoint(weights.checkpoint_path))), torch.float32
        )
        forward = Forward(network, **faults)
        embedder = Embedder(
            weights,
            device=device,
            no_gpu=lambda: None,
            open_gpu=lambda _: TorchBackend(forward, device="cpu", sizes=(2, 4, 8)),
        )
        return embedder, forward

    return make


def test_auto_is_the_cpu_where_there_is_no_gpu_and_nothing_is_said(weights, caplog) -> None:
    """Without a GPU `auto` takes the CPU and logs no warning."""
    assert Embedder(weights, no_gpu=lambda: "no NVIDIA GPU is visible here").device == "cpu"
    assert not caplog.records


def test_auto_is_the_gpu_where_there_is_one(gpu) -> None:
    """With a GPU `auto` runs the probe and the crops on it."""
    embedder, forward = gpu("auto")
    embedder.embed(noise(2))
    assert forward.batches == [2, 2], "the probe, and the crops"


def test_looking_for_a_gpu_imports_torch_only_where_there_may_be_one(tmp_path) -> None:
    """Without a driver's device file the search for a GPU does not import torch."""
    done = run_program("look_for_gpu.py", tmp_path / "nvidiactl")
    assert done.stdout == "no NVIDIA GPU is visible here\nFalse\n", done.stderr


def test_a_driver_without_torch_names_the_extra(tmp_path, monkeypatch) -> None:
    """A driver without torch names the extra to install."""
    monkeypatch.setattr("streamproc.networks.devices.find_spec", lambda _: None)
    assert "install streamproc[gpu]" in why_no_gpu([tmp_path])


def test_a_driver_that_torch_cannot_use_is_said(tmp_path) -> None:
    """A driver that torch cannot use gives that reason."""
    torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")
    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine")
    assert "torch finds no GPU" in why_no_gpu([tmp_path])


def test_cuda_that_cannot_be_had_is_one_line(weights) -> None:
    """`cuda` without a GPU is a usage error of one line with the reason."""
    with pytest.raises(UsageError, match=r"--device cuda: no GPU; or use --device cpu") as caught:
        Embedder(weights, device="cuda", no_gpu=lambda: "no GPU")
    assert "\n" not in str(caught.value)


def test_onnx_alone_runs_on_the_cpu_and_cuda_says_what_it_needs(weights, tmp_path) -> None:
    """Weights as ONNX run on the CPU, and `cuda` refuses them with the formats it needs."""
    path = tmp_path / "network.onnx"
    path.write_bytes(weights.onnx_path.read_bytes())
    alone = find_weights(str(path), cache_folder=tmp_path)
    assert Embedder(alone, no_gpu=lambda: None).device == "cpu"
    with pytest.raises(UsageError, match=r"is ONNX: a GPU needs the weights as \.pth"):
        Embedder(alone, device="cuda", no_gpu=lambda: None)


def test_a_gpu_that_refuses_at_the_start_is_said_and_left(weights, caplog) -> None:
    """A GPU that fails to open is replaced by the CPU, and with `cuda` it is an error."""

    def refuse(_):
        raise DeviceLostError("out of memory")

    assert Embedder(weights, no_gpu=lambda: None, open_gpu=refuse).device == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU cannot be used (out of memory): the network runs on the CPU"
    ]
    with pytest.raises(MachineError, match="the GPU cannot be used"):
        Embedder(weights, device="cuda", no_gpu=lambda: None, open_gpu=refuse)


def test_both_backends_say_the_same_of_the_weights_and_give_the_same_vectors(gpu, cpu) -> None:
    """Both backends report the same weights and give vectors of cosine 0.9999 or more."""
    embedder, _ = gpu()
    assert (embedder.name, embedder.weights_sha256, embedder.dim) == (
        cpu.name,
        cpu.weights_sha256,
        cpu.dim,
    )
    crops = noise(11)
    assert cosines(embedder.embed(crops), cpu.embed(crops)).min() >= COSINE
    assert embedder.embed(crops[:0]).shape == (0, 512)


def test_crops_of_any_size_give_the_same_vectors_on_both(gpu, cpu, shared) -> None:
    """Both backends agree on crops of any size."""
    from PIL import Image

    files = sorted((shared / "data" / "reid" / "market1501_test100").glob("*.jpg"))[:6]
    crops = [
        np.asarray(Image.open(f).convert("RGB"))[i : 128 - i] for i, f in enumerate(files)
    ]  # (128 - 2i, 64, 3)
    crops += [noise(1)[0], np.asarray(Image.open(files[0]).convert("RGB").resize((300, 700)))]
    embedder, _ = gpu()
    assert cosines(embedder.embed(crops), cpu.embed(crops)).min() >= COSINE


def test_out_of_memory_takes_smaller_batches_and_says_so_once(gpu, cpu, caplog) -> None:
    """After a lack of memory batches stay smaller, the vectors right, and one line is logged."""
    embedder, forward = gpu(room=4)
    crops = noise(9)
    for _ in range(2):
        assert cosines(embedder.embed(crops), cpu.embed(crops)).min() >= COSINE
    assert forward.batches == [2, 8, 4, 4, 2, 4, 4, 2], (
        "the probe; eight at once fail; then never again"
    )
    assert [record.getMessage() for record in caplog.records] == [
        "cpu has no memory for 8 crops at once; from now 4"  # the device's name
    ]


def test_no_memory_at_all_goes_on_with_the_cpu(gpu, cpu, caplog) -> None:
    """Where the smallest batch finds no memory, the CPU embeds from then on."""
    embedder, forward = gpu()
    forward.room = 1
    crops = noise(9)
    assert cosines(embedder.embed(crops), cpu.embed(crops)).min() >= COSINE
    assert forward.batches == [2, 8, 4, 2]
    assert "OutOfMemoryError" in caplog.records[-1].getMessage()
    embedder.embed(crops)
    assert len(forward.batches) == 4, "the GPU is not asked again"


def test_a_lost_gpu_is_said_once_and_no_crop_is_lost(gpu, cpu, caplog) -> None:
    """A GPU that fails is reported once, and the CPU embeds its crops and all later ones."""
    embedder, _ = gpu(calls=2)
    crops = noise(20)
    assert cosines(embedder.embed(crops), cpu.embed(crops)).min() >= COSINE
    np.testing.assert_array_equal(embedder.embed(crops), cpu.embed(crops))
    assert embedder.weights_sha256 == cpu.weights_sha256
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [f"the GPU is lost (RuntimeError: {CUDA_ERROR}): the CPU goes on"]


async def test_metrics_go_on_when_the_gpu_is_lost(gpu) -> None:
    """The embed stage counts batches, buckets and crops across the loss of a GPU."""
    embedder, _ = gpu(calls=2)
    crops = tuple(Crop(1, i, i, 0.0, (0, 0, 1, 1), 1.0, 0.5, noise(1, i)[0]) for i in range(2))
    async with EmbedStage(embedder) as stage:
        for person in range(6):
            vectors = await (await stage.submit(Bucket(person, crops, (0, 1))))
            assert vectors.shape == (2, 512)
    assert isinstance(embedder._backend, OnnxBackend)
    assert (stage.batches, stage.buckets, stage.crops) == (6, 6, 12)
    assert stage.seconds["embed"] > 0
