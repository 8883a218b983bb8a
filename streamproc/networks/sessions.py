"""Opening a network in onnxruntime, from what it made of the file last time where that is kept.

Of the 80 ms that opening takes two thirds go into arranging the layers for the processor; a replay
of a short video is 2 s. What is kept is right on such a processor and version of onnxruntime alone,
so the version is in its name, and what it computes of one picture is kept beside it and must come
out again. Else it is made anew.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import WeightsError
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from typing import TypeAlias

    import onnxruntime

    Session: TypeAlias = onnxruntime.InferenceSession

    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array

log = logging.getLogger(__name__)

LEAST_COSINE = 0.99999


def open_session(weights: Weights, threads: int) -> Session:
    """Open the ONNX file as the service runs it. Raises WeightsError."""
    return _open(weights.onnx_path, threads)


def open_kept_session(weights: Weights) -> Session:
    """The same with one thread, by what is kept of it where that is right; else that is made.

    Raises WeightsError.
    """
    if weights.kept_folder is None:
        return open_session(weights, 1)
    import onnxruntime

    name = f"{weights.onnx_path.stem}-{weights.sha256[:16]}.ort-{onnxruntime.__version__}"
    network, answer = (weights.kept_folder / f"{name}{suffix}" for suffix in (".onnx", ".answer"))
    if network.is_file() and answer.is_file():
        try:
            session = _open(network, 1, is_arranged=True)
            if _alike(_answer(session), np.frombuffer(answer.read_bytes(), "<f4")):
                return session
            log.info(
                "%s gives another answer than when it was kept, as on another processor: made anew",
                network,
            )
        except (
            WeightsError,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # onnxruntime's derive from RuntimeError
            log.info("%s cannot be used (%s): made anew", network, error)
    return _open_and_keep(weights, network, answer)


def _open_and_keep(weights: Weights, network: Path, answer: Path) -> Session:
    try:
        network.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=network.parent) as folder:
            arranged, answered = (Path(folder) / path.name for path in (network, answer))
            session = _open(weights.onnx_path, 1, arranged_into=arranged)
            answered.write_bytes(_answer(session).astype("<f4").tobytes())
            answer.unlink(
                missing_ok=True
            )  # a network and the answer of another one must never stand together
            arranged.replace(network)
            answered.replace(answer)
    except (WeightsError, OSError, RuntimeError) as error:
        log.info("the network cannot be kept for the next start (%s)", error)
        return open_session(weights, 1)  # if it was not the folder but the file, this says so
    return session


def _open(
    path: Path, threads: int, *, is_arranged: bool = False, arranged_into: Path | None = None
) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its lines are for its developers; what fails raises
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # the cores also decode and write WebP
    if is_arranged:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if arranged_into is not None:
        options.optimized_model_filepath = str(arranged_into)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds for a bad file
        first_line = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{path}: onnxruntime cannot load it ({first_line})") from error


def _answer(session: Session) -> Float32Array:
    """What the network makes of a picture with something in every place and colour: (dim,)."""
    size = 3 * CROP_HEIGHT_PX * CROP_WIDTH_PX
    picture = (np.arange(size, dtype=np.float32) % 251 / 64 - 2).reshape(
        1, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX
    )
    features: Float32Array = session.run(None, {session.get_inputs()[0].name: picture})[0][0]
    return features


def _alike(one: Float32Array, other: Float32Array) -> bool:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return one.shape == other.shape and bool(np.dot(one, other) >= LEAST_COSINE * lengths > 0)
