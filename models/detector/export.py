"""Make the detector's files that the package carries from trained weights.

    python models/detector/export.py WEIGHTS.safetensors

WEIGHTS are those that train.py writes (batch norms folded). Writes models/persondet_ours.
safetensors and models/persondet_ours.onnx, both with numbers of 16 bits, and checks that
onnxruntime finds in the second what torch finds with the first.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from streamproc.files import sha256_of
from streamproc.networks.person_network import PersonDetector
from streamproc.networks.weights import SOURCE_SHA256_KEY

NAME = "persondet_ours"
FOLDER = Path(__file__).resolve().parents[1]
_LEAST_VALUES = 64
"""Smaller tensors, such as the steps of slices, stay as they are."""


def export(state: dict[str, torch.Tensor], path: Path, source_sha256: str) -> None:
    """Write the ONNX file, whose batch, height and width are free."""
    model = PersonDetector(norm=False).eval()
    model.load_state_dict({name: value.float() for name, value in state.items()})
    per_picture = {0: "n", 1: "a"}
    axes = {"images": {0: "n", 2: "h", 3: "w"}, "scores": per_picture, "boxes": per_picture}
    written = BytesIO()
    torch.onnx.export(
        model,
        (torch.rand(2, 3, 416, 416) * 255,),
        written,
        input_names=["images"],
        output_names=["scores", "boxes"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    proto = onnx.load_from_string(written.getvalue())
    halve(proto)
    onnx.helper.set_model_props(proto, {SOURCE_SHA256_KEY: source_sha256})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def halve(proto: onnx.ModelProto) -> None:
    """Store large tensors in 16 bits, and let the network begin by making 32 of them."""
    casts = []
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _LEAST_VALUES:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=1))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *nodes])


def check(state: dict[str, torch.Tensor], path: Path) -> None:
    """Print the largest difference between torch and onnxruntime for pictures of three sizes."""
    model = PersonDetector(norm=False).eval()
    model.load_state_dict({name: value.float() for name, value in state.items()})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 416, 416), (3, 3, 320, 512), (1, 3, 608, 1088)):
        images = torch.rand(*shape) * 255
        with torch.no_grad():
            expected = model(images)
        found = session.run(None, {"images": images.numpy()})
        pairs = zip(expected, found, strict=True)
        scores, boxes = (float(np.abs(a.numpy() - b).max()) for a, b in pairs)
        print(f"{shape}: scores differ by {scores:.1e}, boxes by {boxes:.1e} px")


def main(weights: Path) -> None:
    """Convert, and print the sha256 of both files."""
    state = {name: value.half().contiguous() for name, value in load_file(weights).items()}
    tensors = FOLDER / f"{NAME}.safetensors"
    save_file(state, tensors, metadata={"architecture": "persondet"})
    network = FOLDER / f"{NAME}.onnx"
    export(state, network, sha256_of(tensors))
    check(state, network)
    for path in (tensors, network):
        print(f"{sha256_of(path)}  {path.name}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
