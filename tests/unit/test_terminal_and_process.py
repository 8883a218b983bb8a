"""What reaches a terminal, a file or another topic, and what stays changed in the process."""

from __future__ import annotations

import sys

import pytest
import threadpoolctl
from aiohttp import web

from streamproc.cli.stream import _letter_line, _show
from streamproc.errors import MachineError, UsageError, WeightsError
from streamproc.events import VideoProgress
from streamproc.files import on_one_line
from streamproc.kafka.client import DeadLetter, _send_back, fetch_matrix
from streamproc.pipeline.pipeline import Pipeline
from streamproc.reid import Embedder, find_weights
from streamproc.settings import load_settings
from streamproc.video import Limits

ESCAPE = "\x1b]0;owned\x07\x9b31m"


class Topics:
    """A publisher that keeps what was sent."""

    def __init__(self) -> None:
        self.sent = []

    async def send(self, topic, key, value, headers) -> None:
        """Keep a record."""
        self.sent.append((topic, key, value, headers))


def letter(topic: str, text: str = "") -> DeadLetter:
    """A dead letter whose headers say what they like."""
    headers = {
        "dlq_topic": topic,
        "dlq_error_text": text,
        "dlq_value_truncated": "false",
        "other": "stays",
    }
    return DeadLetter("0@1", b"k", b"v", tuple((k, v.encode()) for k, v in headers.items()))


def test_no_text_of_others_reaches_a_terminal_as_a_command() -> None:
    """Control characters and texts that turn the direction of writing are shown as escapes."""
    assert on_one_line(f"a{ESCAPE}\nb \u202e c") == r"a\x1b]0;owned\x07\x9b31m b \u202e c"
    assert on_one_line("Grüße, 人") == "Grüße, 人"
    assert "\x1b" not in _letter_line(letter("video-ready", ESCAPE))


def test_watch_shows_escapes_of_an_event_as_text(capsys) -> None:
    """The reason of a failed video cannot change what the terminal shows."""
    event = VideoProgress.make(
        gallery_id="g",
        video_id="v",
        run_id="r",
        state="failed",
        error={"code": "x", "text": ESCAPE},
    )
    _show(event, as_json=False)
    shown = capsys.readouterr().err
    assert "failed" in shown
    assert "\x1b" not in shown
    assert "\x9b" not in shown


@pytest.mark.parametrize("topic", ["p.video-ready", "p.person-embeddings"])
async def test_a_dead_letter_goes_back_to_a_topic_of_ours(topic) -> None:
    """A record is sent back without the headers that made it a dead letter."""
    settings = load_settings({"kafka.topic_prefix": "p."}, config_file=None)
    topics = Topics()
    assert await _send_back(settings, topics, letter(topic)) is None
    assert topics.sent == [(topic.removeprefix("p."), b"k", b"v", (("other", b"stays"),))]


@pytest.mark.parametrize(
    "topic", ["", "p.", "payments", "p.dead-letters", "p.duplicate-candidates"]
)
async def test_a_dead_letter_goes_to_no_other_topic(topic) -> None:
    """A header that names a topic from which no service takes records is not obeyed."""
    settings = load_settings({"kafka.topic_prefix": "p."}, config_file=None)
    topics = Topics()
    assert "no service" in await _send_back(settings, topics, letter(topic))
    assert topics.sent == []


async def serve(handler) -> tuple[web.AppRunner, str]:
    """Start a server of one answer; return it and its address."""
    application = web.Application()
    application.router.add_get("/galleries/{name}/similarity", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_a_matrix_is_written_as_it_comes(tmp_path) -> None:
    """The parts of an answer are in the file, and an answer that is cut off leaves none."""

    async def handler(request):
        response = web.StreamResponse()
        if request.match_info["name"] == "short":
            response.content_length = 10**6
        await response.prepare(request)
        for _ in range(5):
            await response.write(b"x" * 1000)
        if request.match_info["name"] == "short":
            request.transport.close()
        return response

    runner, url = await serve(handler)
    try:
        await fetch_matrix("whole", url, tmp_path / "whole.npy")
        assert (tmp_path / "whole.npy").read_bytes() == b"x" * 5000
        with pytest.raises(MachineError):
            await fetch_matrix("short", url, tmp_path / "short.npy")
        with pytest.raises(UsageError, match="cannot be written"):
            await fetch_matrix("whole", url, tmp_path / "none" / "whole.npy")
    finally:
        await runner.cleanup()
    assert [path.name for path in tmp_path.iterdir()] == ["whole.npy"]


async def test_pipelines_that_overlap_leave_the_process_as_it_was() -> None:
    """The switch interval and BLAS's threads are put back when the last pipeline has ended."""

    async def publish(_event) -> None:
        """Nothing is published."""

    def blas() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    def pipeline() -> Pipeline:
        return Pipeline(
            load_network=lambda: None,
            publish=publish,
            write_animation=None,
            crop_memory_bytes=1,
            limits=Limits(),
        )

    before = (sys.getswitchinterval(), blas())
    first, second = pipeline(), pipeline()
    await first.__aenter__()
    await second.__aenter__()
    during = sys.getswitchinterval()
    await first.__aexit__(None, None, None)
    assert sys.getswitchinterval() == during
    await second.__aexit__(None, None, None)
    assert (sys.getswitchinterval(), blas()) == before


def test_a_network_that_cannot_run_is_a_fault_of_its_file(tmp_path) -> None:
    """Errors of onnxruntime while a network runs are WeightsErrors that name the file."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: the extra gpu brings it")
    make = onnx.helper
    sizes = make.make_tensor("sizes", onnx.TensorProto.INT64, [2], [7, 11])
    graph = make.make_graph(
        [make.make_node("Reshape", ["image", "sizes"], ["out"])],
        "broken",
        [make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3, 256, 128])],
        [make.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [sizes],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"broken\.onnx: cannot run"):
        Embedder(find_weights(str(path), cache_folder=tmp_path))
