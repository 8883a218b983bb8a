"""Opens a network in onnxruntime, from a cached optimized form of its file if there is a valid one.

Two thirds of the 80 ms that opening takes are spent on optimizing the layers for the processor; a
replay of a short video takes 2 s. The optimized form is valid only for one kind of processor and
one version of onnxruntime. So the version is in its file name, and the output for one test image is
stored beside it and must come out again. Otherwise the network is optimized again.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import WeightsError
from streamproc.files import sha256_of
from streamproc.networks.weights import SOURCE_SHA256_KEY

if TYPE_CHECKING:
    from typing import TypeAlias

    import onnxruntime

    Session: TypeAlias = onnxruntime.InferenceSession
    InputShape: TypeAlias = tuple[int, int, int]  # channels, height, width of one image

    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array

log = logging.getLogger(__name__)

LEAST_COSINE = 0.99999


def open_session(weights: Weights, threads: int) -> Session:
    """Open the ONNX file with so many threads of onnxruntime's own. Raises WeightsError."""
    return _open(weights.onnx_path, threads)


def open_optimized_session(weights: Weights, input_shape: InputShape) -> Session:
    """Open with one thread, from the cached optimized form; makes that if it is not valid.

    `input_shape` is the size of the test image. Raises WeightsError.
    """
    if weights.optimized_folder is None:
        return open_session(weights, 1)
    import onnxruntime

    name = f"{weights.onnx_path.stem}-{weights.sha256[:16]}.ort-{onnxruntime.__version__}"
    network = weights.optimized_folder / f"{name}.onnx"
    stored = weights.optimized_folder / f"{name}.answer"
    if network.is_file() and stored.is_file():
        try:
            session = _open(network, 1, is_optimized=True)
            expected = np.frombuffer(stored.read_bytes(), "<f4")
            if _equal_direction(_test_output(session, input_shape), expected):
                return session
            log.info("%s: another output than stored: optimizing the network again", network)
        except Exception as error:  # noqa: BLE001 - onnxruntime's own errors derive from it alone
            log.info("%s cannot be used (%s): optimizing the network again", network, error)
    return _open_and_cache(weights, input_shape, network, stored)


def source_sha256_of(weights: Weights) -> str:
    """Return the sha256 that names the weights in events, without preparing the network to run.

    It is that of the checkpoint. If there is only an ONNX file, it is the one in its metadata, or
    else the file's own. Raises WeightsError for a file that onnxruntime cannot load.
    """
    if weights.checkpoint_path is not None:
        return sha256_of(weights.checkpoint_path)
    metadata = open_session(weights, 1).get_modelmeta().custom_metadata_map
    sha256: str = metadata.get(SOURCE_SHA256_KEY, weights.sha256)
    return sha256


def _open_and_cache(
    weights: Weights, input_shape: InputShape, network: Path, stored: Path
) -> Session:
    """Open the ONNX file, and write its optimized form and the test image's output."""
    try:
        network.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=network.parent) as folder:
            new_network = Path(folder) / network.name
            new_stored = Path(folder) / stored.name
            session = _open(weights.onnx_path, 1, optimized_into=new_network)
            output = _test_output(session, input_shape)
            new_stored.write_bytes(output.astype("<f4").tobytes())
            # A network must never stand beside the output of another one.
            stored.unlink(missing_ok=True)
            new_network.replace(network)
            new_stored.replace(stored)
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors derive from it alone
        log.info("the optimized network cannot be cached for the next start (%s)", error)
        return open_session(weights, 1)  # raises if the fault was the ONNX file, not the folder
    return session


def _open(
    path: Path, threads: int, *, is_optimized: bool = False, optimized_into: Path | None = None
) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its lines are for its developers; what fails raises
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Threads must not spin while they wait: the cores also decode and write WebP.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if is_optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_into is not None:
        options.optimized_model_filepath = str(optimized_into)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds for a bad file
        first_line = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{path}: onnxruntime cannot load it ({first_line})") from error


def _test_output(session: Session, input_shape: InputShape) -> Float32Array:
    """All outputs, one after another in one dimension, for an image that is varied everywhere."""
    values = np.arange(np.prod(input_shape), dtype=np.float32) % 251 / 64 - 2
    image = values.reshape(1, *input_shape)
    outputs = session.run(None, {session.get_inputs()[0].name: image})
    return np.concatenate([np.ravel(output) for output in outputs])


def _equal_direction(one: Float32Array, other: Float32Array) -> bool:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return one.shape == other.shape and bool(np.dot(one, other) >= LEAST_COSINE * lengths > 0)
