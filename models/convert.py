"""Make the files that the package carries from a checkpoint.

    python models/convert.py CHECKPOINT NAME

Writes models/NAME.safetensors (the tensors without the classifier, negligible values set to 0) and
models/NAME.onnx (its export).
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from streamproc.files import sha256_of
from streamproc.networks.weights import read_checkpoint
from streamproc.reid.export import export_onnx
from streamproc.reid.osnet import from_state


def main(checkpoint: Path, name: str) -> None:
    """Convert, and print the sha256 of both files."""
    folder = Path(__file__).parent
    cleaned = from_state(read_checkpoint(checkpoint)).state_dict()
    state = {key: value.contiguous() for key, value in cleaned.items()}
    tensors = folder / f"{name}.safetensors"
    save_file(state, tensors, metadata={"architecture": "osnet_x0_25"})
    network = folder / f"{name}.onnx"
    export_onnx(state, network, source_sha256=sha256_of(tensors))
    for path in (tensors, network):
        print(f"{sha256_of(path)}  {path.name}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
