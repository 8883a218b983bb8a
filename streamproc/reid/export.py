"""OSNet checkpoints as ONNX, which onnxruntime runs on the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streamproc.networks import weights as network_weights
from streamproc.networks.weights import SOURCE_SHA256_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    import torch

    from streamproc.networks.weights import Weights


def find_weights(
    spec: str | None, *, cache_folder: Path, models_folder: Path | None = None
) -> Weights:
    """Resolve `--weights` to OSNet's weights: see `networks.weights.find_weights`."""
    return network_weights.find_weights(
        spec, export=export_onnx, cache_folder=cache_folder, models_folder=models_folder
    )


def export_onnx(state: Mapping[str, torch.Tensor], path: Path, *, source_sha256: str) -> None:
    """Write the OSNet of `state` as ONNX: input [batch, 3, 256, 128] float32, output [batch, dim]; atomically."""
    import onnx
    import torch

    from streamproc.reid.osnet import from_state
    from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

    model = from_state(state)
    example = torch.zeros(2, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX)
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
    """Drop what the exporter notes of the source (paths, stack traces): half of the file, of no use to a reader."""
    graph = proto.graph
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
