"""The GPU's form of OSNet and its kernels, against eager torch; and all of it on a GPU, if any."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from programs import run_program

torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")

# What follows needs torch.
from streamproc.reid.gpu_network import GpuNetwork, light_convs
from streamproc.reid.osnet import OSNet, OSNetConfig, PixelNetwork
from streamproc.reid.preprocessing import normalise
from streamproc.reid.torch_backend import HOST_CROPS, TorchBackend, _compile, backend_on

WIDTHS = {
    "x0.25": (16, 64, 96, 128),
    "x0.5": (32, 128, 192, 256),
    "x0.75": (48, 192, 288, 384),
    "x1.0": (64, 256, 384, 512),
}
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU here that torch can use"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="there is no Triton here"
)


def untrained(channels, seed=0):
    """An OSNet with batch norms as training leaves them.

    Their scales and means differ from layer to layer.
    """
    torch.manual_seed(seed)
    network = OSNet(OSNetConfig(channels, 512)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


def crops(count):
    """Random crops (count, 256, 128, 3), the same for the same count."""
    return np.random.default_rng(count).integers(0, 256, (count, 256, 128, 3), np.uint8)


def least_cosine(network, pixels, features):
    """The least cosine between features and those of eager torch on the same pixels."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(normalise(pixels)))
    return torch.nn.functional.cosine_similarity(torch.as_tensor(features), expected).min()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_computes_what_osnet_computes_at_every_width(width) -> None:
    """GpuNetwork gives OSNet's features at every width, and not those of other weights."""
    pixels = crops(2)
    with torch.inference_mode():
        features = GpuNetwork(untrained(WIDTHS[width]))(torch.from_numpy(pixels))
    assert features.dtype == torch.float32
    assert least_cosine(untrained(WIDTHS[width]), pixels, features) >= 0.999
    assert (
        least_cosine(untrained(WIDTHS[width], seed=1), pixels, features) < 0.9
    )  # it is not any network


def test_one_input_stands_for_all_streams() -> None:
    """One input gives what the same input repeated for each stream gives."""
    x = torch.randn(1, 2, 5, 4, 16)
    weight = torch.randn(3, 9, 16, 16)
    bias = torch.randn(3, 16)
    torch.testing.assert_close(
        light_convs(x, weight, bias), light_convs(x.expand(3, -1, -1, -1, -1), weight, bias)
    )


@pytest.mark.long
def test_it_compiles_as_one_graph(caplog) -> None:
    """The network compiles without a graph break, and its features stay right.

    So a GPU can replay one CUDA graph a batch. It uses torch's own kernels here, as a C++ compiler
    may be missing.
    """
    network = GpuNetwork(untrained(WIDTHS["x0.25"]))
    pixels = crops(4)
    backend = TorchBackend(
        network,
        device="cpu",
        sizes=(4,),
        compiler=lambda one: torch.compile(one, backend="aot_eager", fullgraph=True, dynamic=False),
    )
    backend.compile_now()
    assert "uncompiled" not in caplog.text
    assert least_cosine(untrained(WIDTHS["x0.25"]), pixels, backend.run(pixels)) >= 0.999


@needs_triton
@pytest.mark.long
def test_the_kernels_compute_what_torchs_layers_compute() -> None:
    """In Triton's interpreter the kernels give what torch's layers give.

    The interpreter must be asked for before Triton is loaded, so in a process of its own.
    """
    done = run_program("compare_kernels.py", TRITON_INTERPRET="1")
    assert done.stdout == "all alike\n", done.stderr


@pytest.mark.parametrize("why", ["there is no Triton", "a kernel does not compile"])
def test_without_the_kernels_the_plain_network_runs_and_that_is_said(
    caplog, monkeypatch, why
) -> None:
    """Where the kernels are missing or fail, the plain network runs and a line says why."""

    def load():
        return untrained(WIDTHS["x0.25"])

    def features(_, pixels):
        return torch.zeros(len(pixels), 512)

    def refuses(*_):
        raise ValueError(why)  # Triton's errors are of no common kind

    for form in (GpuNetwork, PixelNetwork):  # what each computes is asked above
        monkeypatch.setattr(form, "forward", features)
    assert isinstance(backend_on("cpu", load, no_kernels=None)._network, GpuNetwork)
    assert not caplog.text
    if why == "a kernel does not compile":
        monkeypatch.setattr(GpuNetwork, "forward", refuses)
    backend = backend_on("cpu", load, no_kernels=why if "Triton" in why else None)
    assert isinstance(backend._network, PixelNetwork)
    assert f"slower: {'' if 'Triton' in why else 'ValueError: '}{why}" in caplog.text


def test_many_crops_go_in_parts_so_that_copying_and_computing_overlap() -> None:
    """Many crops run in parts of HOST_CROPS, and come back in order."""
    batches = []

    def forward(pixels):
        batches.append(len(pixels))
        return pixels.float().mean((1, 2))

    pixels = crops(2 * HOST_CROPS + 3)
    features = TorchBackend(forward, device="cpu", sizes=(4, HOST_CROPS, 4 * HOST_CROPS)).run(
        pixels
    )
    assert batches == [4, HOST_CROPS, HOST_CROPS, 4]  # the first one is the probe
    np.testing.assert_allclose(features, pixels.mean((1, 2)), rtol=1e-4)


@needs_gpu
@pytest.mark.parametrize("width", WIDTHS)
def test_on_a_gpu_all_ways_in_give_eager_torchs_vectors(width) -> None:
    """On a GPU crops of the network's size give eager torch's vectors, and others finite ones."""
    eager = untrained(WIDTHS[width])
    pixels = crops(HOST_CROPS + 40)
    backend = TorchBackend(GpuNetwork(untrained(WIDTHS[width])).cuda(), device="cuda")
    assert least_cosine(eager, pixels, backend.run(pixels)) >= 0.999
    small = [np.ascontiguousarray(crop[: 60 + i]) for i, crop in enumerate(pixels[:9])]
    assert np.isfinite(backend.run(small)).all()


@needs_gpu
def test_on_a_gpu_compiling_pays_and_changes_nothing(caplog) -> None:
    """On a GPU the compiled networks replace the plain one and give its vectors."""
    eager = untrained(WIDTHS["x0.25"])
    pixels = crops(2 * HOST_CROPS + 9)
    plain = GpuNetwork(untrained(WIDTHS["x0.25"])).cuda()
    backend = TorchBackend(plain, device="cuda", sizes=(8, HOST_CROPS), compiler=_compile)
    backend.compile_now()
    assert "uncompiled" not in caplog.text
    assert all(forward is not plain for forward in backend._forwards.values())
    assert least_cosine(eager, pixels, backend.run(pixels)) >= 0.999


@needs_gpu
def test_on_a_gpu_without_memory_batches_get_smaller(caplog) -> None:
    """On a GPU without memory batches get smaller, and the vectors stay right."""
    backend = TorchBackend(
        GpuNetwork(untrained(WIDTHS["x0.25"])).cuda(), device="cuda", sizes=(8, HOST_CROPS)
    )
    expected = backend.run(crops(HOST_CROPS))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 60 * 2**20) / total)
    try:
        features = backend.run(crops(HOST_CROPS))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "has no memory for 128 crops at once; from now 8" in caplog.text
    assert (
        torch.nn.functional.cosine_similarity(
            torch.from_numpy(features), torch.from_numpy(expected)
        ).min()
        >= 0.999
    )
