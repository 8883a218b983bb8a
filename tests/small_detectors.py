"""Makes small detectors of the layouts that others export: they see bright rectangles.

Each is an ONNX file of a few layers. A cell of 32 pixels whose mean is far above the grey of the
letter box is a person of fixed size there. The coarsest stride alone finds something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 96
STRIDES = (8, 16, 32)
ANCHORS = sum((SIDE // stride) ** 2 for stride in STRIDES)
CELLS = (SIDE // 32) ** 2
BOX = (48.0, 80.0)
"""Width and height of what is found, around the middle of a bright cell."""
CONFIDENCE = 0.75


def constant(name, values, kind=np.float32):
    """Return a tensor of the graph."""
    return numpy_helper.from_array(np.asarray(values, kind), name)


def brightness(scale):
    """Return nodes that give (1, CELLS), 1 where a cell is bright and 0 elsewhere."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["grey"], axes=[1], keepdims=1),
        helper.make_node(
            "AveragePool", ["grey"], ["cells"], kernel_shape=[32, 32], strides=[32, 32]
        ),
        helper.make_node("Greater", ["cells", "limit"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["bright_map"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["bright_map", "flat"], ["bright"]),
    ]
    tensors = [constant("limit", 180 * scale), constant("flat", [1, CELLS], np.int64)]
    return nodes, tensors


def write(path, nodes, tensors, outputs, extra_inputs=()):
    """Write the network; `outputs` are (name, shape, type)."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    graph = helper.make_graph(
        nodes,
        "detector",
        [images, *extra_inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def centres():
    """Return the middle (CELLS, 2) of each cell of the coarsest stride."""
    rows, columns = np.mgrid[: SIDE // 32, : SIDE // 32]
    return np.stack([columns.ravel(), rows.ravel()], 1) * 32 + 16.0


def rows_of_boxes(boxes, columns):
    """Return rows (ANCHORS, columns) of zeros whose last ones begin with `boxes`."""
    rows = np.zeros((1, ANCHORS, columns), np.float32)
    rows[0, ANCHORS - CELLS :, :4] = boxes
    return rows


def in_column(column, count):
    """Return nodes that put `bright` into one column of (1, ANCHORS, count)."""
    nodes = [
        helper.make_node("Pad", ["bright", "before"], ["padded"]),
        helper.make_node("Reshape", ["padded", "upright"], ["one_column"]),
        helper.make_node("Mul", ["one_column", "place"], ["scores_in_place"]),
    ]
    place = np.zeros((1, 1, count), np.float32)
    place[0, 0, column] = CONFIDENCE
    tensors = [
        constant("before", [0, ANCHORS - CELLS, 0, 0], np.int64),
        constant("upright", [1, ANCHORS, 1], np.int64),
        constant("place", place),
    ]
    return nodes, tensors


def yolox(path: Path, *, decoded: bool = False, classes: int = 2, offset_px: float = 0) -> Path:
    """As YOLOX: box, objectness 1, class 0 where it is bright; boxes moved to the right."""
    nodes, tensors = brightness(1)
    more_nodes, more_tensors = in_column(5, 5 + classes)
    middle = centres() + np.array([offset_px, 0])
    if decoded:
        boxes = np.concatenate([middle, np.tile(BOX, (CELLS, 1))], 1)
    else:
        offsets = middle / 32 - np.floor(centres() / 32)
        boxes = np.concatenate([offsets, np.tile(np.log(np.array(BOX) / 32), (CELLS, 1))], 1)
    base = rows_of_boxes(boxes, 5 + classes)
    base[..., 4] = 1
    if decoded:
        base[0, : ANCHORS - CELLS, :2] = np.linspace(0, SIDE, ANCHORS - CELLS)[:, None]
    nodes += [*more_nodes, helper.make_node("Add", ["scores_in_place", "base"], ["output"])]
    tensors += [*more_tensors, constant("base", base)]
    outputs = [("output", [1, ANCHORS, 5 + classes], TensorProto.FLOAT)]
    return write(path, nodes, tensors, outputs)


def ultralytics(path: Path, *, classes: int = 2) -> Path:
    """As ultralytics: centre and size in pixels, classes; the anchors are columns."""
    nodes, tensors = brightness(1 / 255)
    more_nodes, more_tensors = in_column(4, 4 + classes)
    boxes = np.concatenate([centres(), np.tile(BOX, (CELLS, 1))], 1)
    nodes += [
        *more_nodes,
        helper.make_node("Add", ["scores_in_place", "base"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["output0"], perm=[0, 2, 1]),
    ]
    tensors += [*more_tensors, constant("base", rows_of_boxes(boxes, 4 + classes))]
    outputs = [("output0", [1, 4 + classes, ANCHORS], TensorProto.FLOAT)]
    return write(path, nodes, tensors, outputs)


def rt_detr(path: Path) -> Path:
    """As RT-DETR: labels, boxes in pixels of the picture whose size it is told, and scores."""
    nodes, tensors = brightness(1 / 255)
    middle = centres()
    half = np.array(BOX) / 2
    shares = np.concatenate([middle - half, middle + half], 1)[None] / SIDE
    nodes += [
        helper.make_node("Mul", ["bright", "confidence"], ["scores"]),
        helper.make_node("Cast", ["orig_target_sizes"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["size", "size"], ["both_corners"], axis=1),
        helper.make_node("Mul", ["shares", "both_corners"], ["boxes"]),
        helper.make_node("Identity", ["kinds"], ["labels"]),
    ]
    kinds = np.zeros((1, CELLS), np.int64)
    kinds[0, 0] = 3  # the first cell's is a car
    tensors += [
        constant("confidence", CONFIDENCE),
        constant("shares", shares),
        constant("kinds", kinds, np.int64),
    ]
    sizes = helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2])
    outputs = [
        ("labels", [1, CELLS], TensorProto.INT64),
        ("boxes", [1, CELLS, 4], TensorProto.FLOAT),
        ("scores", [1, CELLS], TensorProto.FLOAT),
    ]
    return write(path, nodes, tensors, outputs, [sizes])
