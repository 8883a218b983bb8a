"""The detector in torch, as a GPU runs it: the CPU's boxes, the choice of a device, its faults.

The GPU of these tests is the real backend on torch's CPU device, with faults put into its lowest
call: the network's forward.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import small_detectors
from programs import run_program

from streamproc.errors import MachineError, UsageError
from streamproc.networks.devices import DeviceLostError
from streamproc.networks.parallel import NETWORK_THREAD
from streamproc.tracks.detection.boxes import iou_matrix
from streamproc.tracks.detection.detector import Detector, find_weights
from streamproc.video import Limits, open_video

CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The package's own weights, with a cache of their own."""
    return find_weights(None, cache_folder=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def frames(sample):
    """Six real frames of the sample clip, people in each."""
    with open_video(sample / "sample.mp4", limits=Limits(), decode_threads=1) as video:
        return list(video.frames(np.arange(40, 160, 20)))


@pytest.fixture(scope="module")
def on_cpu(weights, frames):
    """What onnxruntime finds in the frames."""
    detector = Detector(weights, threads=2, min_confidence=0.3)
    return [detector.detect(frame) for frame in frames]


class Forward:
    """The network's forward with a limit on its batch. After some calls the device is lost."""

    def __init__(self, network, *, room=10**6, calls=10**6):
        self.network = network
        self.room = room
        self.calls = calls
        self.batches = []

    def __call__(self, images):
        """Run the network, or raise what torch would raise."""
        import torch

        self.batches.append(len(images))
        if len(self.batches) > self.calls:
            raise RuntimeError(f"{CUDA_ERROR}\nCompile with TORCH_USE_CUDA_DSA")
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(images)


@pytest.fixture
def gpu(weights):
    """Make a detector whose GPU has these faults; gives it and its forward."""
    torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")

    def make(*, device="cuda", dtype=torch.float32, batch_size=4, **faults):
        from streamproc.networks.torch_pictures import TorchPictures, load_network

        forward = Forward(load_network(weights.checkpoint_path).to(dtype), **faults)
        detector = Detector(
            weights,
            threads=2,
            min_confidence=0.3,
            device=device,
            no_gpu=lambda: None,
            open_gpu=lambda _: TorchPictures(
                forward, device="cpu", dtype=dtype, batch_size=batch_size
            ),
        )
        return detector, forward

    return make


def looked_at(detector, frames):
    """What a detector finds in frames that it is given all at once."""
    begun = [detector.submit(frame) for frame in frames]
    return [
        detector.read(outputs.result(), frame.width, frame.height)
        for outputs, frame in zip(begun, frames, strict=True)
    ]


def assert_same(found, expected, *, px, confidence) -> None:
    """Every box has its own of the others, within `px` at each side and in confidence."""
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        partners = iou_matrix(one.boxes_xyxy, other.boxes_xyxy).argmax(1)
        assert len(set(partners.tolist())) == len(partners)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy[partners], atol=px)
        np.testing.assert_allclose(one.confidences, other.confidences[partners], atol=confidence)


def test_torch_finds_what_onnxruntime_finds(gpu, frames, on_cpu) -> None:
    """In 32 bits boxes are the same within one step of rounding, 1/8 px and 1/4096."""
    detector, _ = gpu()
    assert_same(looked_at(detector, frames), on_cpu, px=1 / 8, confidence=1 / 4096)


def test_half_precision_finds_the_same_people(gpu, frames, on_cpu) -> None:
    """In 16 bits, as on a GPU, boxes are within 1 px and confidences within .01."""
    import torch

    detector, _ = gpu(dtype=torch.float16, batch_size=2)  # slow on a CPU
    assert_same(looked_at(detector, frames[:2]), on_cpu[:2], px=1, confidence=0.01)


def test_a_frame_gives_the_same_alone_and_in_a_batch(gpu, frames) -> None:
    """Frames run in full batches, and what is found in one does not depend on the others."""
    detector, forward = gpu()
    all_are_waiting = threading.Event()
    NETWORK_THREAD.submit(all_are_waiting.wait)
    begun = [detector.submit(frame) for frame in frames]
    all_are_waiting.set()
    size = frames[0].width, frames[0].height
    together = [detector.read(outputs.result(), *size) for outputs in begun]
    assert forward.batches == [4, 4, 4], "the probe, four frames, and the other two"
    for frame, beside in zip(frames, together, strict=True):
        alone = detector.detect(frame)
        np.testing.assert_array_equal(alone.boxes_xyxy, beside.boxes_xyxy)
        np.testing.assert_array_equal(alone.confidences, beside.confidences)


def test_a_lost_gpu_is_said_once_and_no_frame_is_lost(gpu, frames, on_cpu, caplog) -> None:
    """A GPU that fails in the middle is reported once, and the CPU looks at all that is left."""
    detector, forward = gpu(calls=2)
    for _ in range(2):
        found = [detector.detect(frame) for frame in frames]
        assert_same(found, on_cpu, px=1 / 8, confidence=1 / 4096)
    assert detector.device == "cpu"
    assert len(forward.batches) == 3, "the probe, one batch, one that failed; then never again"
    assert [record.getMessage() for record in caplog.records] == [
        f"the detector's GPU is lost (RuntimeError: {CUDA_ERROR}): the CPU goes on"
    ]


def test_out_of_memory_takes_smaller_batches_and_says_so(gpu, frames, on_cpu, caplog) -> None:
    """After a lack of memory batches stay smaller, and what is found stays the same."""
    detector, forward = gpu(room=2)
    assert_same(looked_at(detector, frames), on_cpu, px=1 / 8, confidence=1 / 4096)
    assert forward.batches[:2] == [4, 2]
    assert set(forward.batches[1:]) == {2}
    assert [record.getMessage() for record in caplog.records] == [
        "cpu has no memory for 4 pictures at once; from now 2"  # the device's name
    ]


def test_numbers_that_overflow_leave_the_gpu(gpu, frames, on_cpu, caplog) -> None:
    """Outputs that are no numbers are not believed: the CPU looks at the frame."""
    detector, forward = gpu()
    network = forward.network

    def overflowing(images):
        scores, boxes = network(images)
        return scores, boxes * float("inf")

    forward.network = overflowing
    assert_same([detector.detect(frames[0])], on_cpu[:1], px=1 / 8, confidence=1 / 4096)
    assert "half precision overflows" in caplog.text


def test_auto_is_the_gpu_where_there_is_one_else_the_cpu(gpu, weights, caplog) -> None:
    """`auto` asks for a GPU, and without one takes the CPU and logs no warning."""
    _, forward = gpu(device="auto")
    assert forward.batches == [4], "the probe"
    without = Detector(weights, min_confidence=0.3, device="auto", no_gpu=lambda: "no GPU")
    assert without.device == "cpu"
    assert not caplog.records


def test_cuda_that_cannot_be_had_is_one_line(weights) -> None:
    """`cuda` without a GPU is a usage error of one line with the reason."""
    with pytest.raises(UsageError, match=r"detector\.device cuda: no GPU; or use cpu") as caught:
        Detector(weights, min_confidence=0.3, device="cuda", no_gpu=lambda: "no GPU")
    assert "\n" not in str(caught.value)


def test_other_detectors_run_on_the_cpu_and_cuda_refuses_them(tmp_path) -> None:
    """A network of somebody else's is ONNX alone, so `auto` is the CPU for it."""
    other = find_weights(str(small_detectors.yolox(tmp_path / "d.onnx")), cache_folder=tmp_path)
    options = {"min_confidence": 0.3, "no_gpu": lambda: None}
    assert Detector(other, device="auto", **options).device == "cpu"
    with pytest.raises(UsageError, match=r"d\.onnx is ONNX: only the package's own detector"):
        Detector(other, device="cuda", **options)


def test_a_gpu_that_refuses_at_the_start_is_said_and_left(weights, caplog) -> None:
    """A GPU that fails to open is replaced by the CPU, and with `cuda` it is an error."""

    def refuse(_):
        raise DeviceLostError("out of memory")

    options = {"min_confidence": 0.3, "no_gpu": lambda: None, "open_gpu": refuse}
    assert Detector(weights, device="auto", **options).device == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU cannot be used (out of memory): the detector runs on the CPU"
    ]
    with pytest.raises(MachineError, match="the GPU cannot be used"):
        Detector(weights, device="cuda", **options)


def test_finding_people_on_the_cpu_does_not_import_torch(sample) -> None:
    """A detector that runs on the CPU finds people without torch."""
    done = run_program("detect_on_cpu.py", sample / "sample.mp4")
    assert done.stdout == "True\nFalse\n", done.stderr
