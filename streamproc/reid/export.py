"""OSNet's weights: how they are found, and how a checkpoint is exported to ONNX for the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streamproc.networks import weights as network_weights
from streamproc.networks.weights import SOURCE_SHA256_KEY, NetworkFamily
from streamproc.reid.preprocessing import INPUT_SHAPE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    import torch

    from streamproc.networks.weights import Weights

DEFAULT_NAME = "osnet_x0_25_ours"


def find_weights(
    spec: str | None, *, cache_folder: Path, models_folder: Path | None = None
) -> Weights:
    """Resolve `--weights` to OSNet's weights: see `networks.weights.find_weights`."""
    return network_weights.find_weights(
        spec, OSNET, cache_folder=cache_folder, models_folder=models_folder
    )


def export_onnx(state: Mapping[str, torch.Tensor], path: Path, *, source_sha256: str) -> None:
    """Write the OSNet of `state` as ONNX, all of the file or nothing.

    Its input is [batch, 3, 256, 128] float32, its output [batch, dim]. `source_sha256` becomes
    metadata of the file. Raises WeightsError if `state` is not of an OSNet.
    """
    import onnx
    import torch

    from streamproc.reid.osnet import from_state

    model = from_state(state)
    example = torch.zeros(2, *INPUT_SHAPE)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["crops"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    _strip_traces(proto)
    onnx.helper.set_model_props(proto, {SOURCE_SHA256_KEY: source_sha256})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(proto.SerializeToString())
    part.replace(path)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes on the source (paths, stack traces): half of the file."""
    graph = proto.graph
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


OSNET = NetworkFamily(
    name="OSNet",
    architecture_prefix="osnet_",
    input_shape=INPUT_SHAPE,
    default_weights=DEFAULT_NAME,
    option="--weights",
    export=export_onnx,
    export_version=1,
)
