"""Triton kernels for the layers of OSNet that torch's libraries run slowly on a GPU.

Triton comes with torch for GPUs. These layers have few channels (16 to 128), so their cost is
memory traffic and unused lanes: cuDNN computes 16 channels as if they were 64, and each of its
layers writes and reads everything once more. The kernels keep the channels of an output pixel in
registers and add up small matrix products, one for each tap of the convolution. What neighbouring
pixels read again comes from the cache.

`gpu_network` says what each kernel computes. The tests run all of them in Triton's interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

# These values were the fastest on an H200.
PIXELS = 128
"""Output pixels of a program."""
LEAVE_PIXELS = 64
"""Output pixels of a program of `leave`."""
WARPS = 4
STAGES = 3
"""Taps of a light convolution that are loaded ahead, if its number of channels is a power of two.

Memory of other numbers of channels is not aligned for it.
"""


@triton.jit
def _light_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, x_stream, pixels, height, width,
    channels: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(1)
    p = tl.program_id(0) * block + tl.arange(0, block)
    column = p % width
    row = (p // width) % height
    c = tl.arange(0, padded)
    inside = c < channels
    x_ptr += stream * x_stream
    total = tl.zeros((block, padded), tl.float32)
    for tap in tl.range(0, 9, num_stages=stages):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        in_height = (row + dy >= 0) & (row + dy < height)
        in_width = (column + dx >= 0) & (column + dx < width)
        there = (p < pixels) & in_height & in_width
        mask = there[:, None] & inside[None, :]
        x = tl.load(
            x_ptr + (p + dy * width + dx)[:, None] * channels + c[None, :], mask=mask, other=0.0
        )
        at = ((stream * 9 + tap) * channels + c[:, None]) * channels + c[None, :]
        w = tl.load(w_ptr + at, mask=inside[:, None] & inside[None, :], other=0.0)
        total = tl.dot(x, w, total)
    total += tl.load(b_ptr + stream * channels + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = (stream * pixels + p)[:, None] * channels + c[None, :]
    tl.store(
        y_ptr + at,
        tl.maximum(total, 0.0).to(tl.float16),
        mask=(p < pixels)[:, None] & inside[None, :],
    )


@triton.jit
def _stem_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, pixels, height, width,
    channels: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * block + tl.arange(0, block)
    there = (p < pixels)[:, None]
    column = p % width
    row = (p // width) % height
    image = p // (width * height)
    k = tl.arange(0, 32)  # 8 neighbouring pixels of 4 channels
    c = tl.arange(0, padded)
    inside = c < channels
    x_width = 2 * width + 8
    first = ((image * (2 * height + 6) + 2 * row) * x_width + 2 * column) * 4
    total = tl.zeros((block, padded), tl.float32)
    for tap in tl.static_range(7):
        x = tl.load(
            x_ptr + (first + tap * x_width * 4)[:, None] + k[None, :], mask=there, other=0.0
        )
        w = tl.load(
            w_ptr + (tap * 32 + k[:, None]) * channels + c[None, :], mask=inside[None, :], other=0.0
        )
        total = tl.dot(x, w, total)
    total += tl.load(b_ptr + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = p[:, None] * channels + c[None, :]
    tl.store(y_ptr + at, tl.maximum(total, 0.0).to(tl.float16), mask=there & inside[None, :])


@triton.jit
def _leave_kernel(
    y0_ptr, y1_ptr, y2_ptr, y3_ptr, gate_ptr, w_ptr, b_ptr, x_ptr, project_ptr, out_ptr,
    pixels, area,
    mid: tl.constexpr, mid_padded: tl.constexpr, n_in: tl.constexpr, in_padded: tl.constexpr,
    n_out: tl.constexpr, out_padded: tl.constexpr, project: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * block + tl.arange(0, block)
    there = p < pixels
    c = tl.arange(0, mid_padded)
    inside = c < mid
    n = tl.arange(0, out_padded)
    n_inside = n < n_out
    mask = there[:, None] & inside[None, :]
    at = p[:, None] * mid + c[None, :]
    gate_at = (p // area)[:, None] * mid + c[None, :]
    gates = (pixels // area) * mid
    y0 = tl.load(y0_ptr + at, mask=mask, other=0.0)
    y1 = tl.load(y1_ptr + at, mask=mask, other=0.0)
    y2 = tl.load(y2_ptr + at, mask=mask, other=0.0)
    y3 = tl.load(y3_ptr + at, mask=mask, other=0.0)
    mixed = y0 * tl.load(gate_ptr + gate_at, mask=mask, other=0.0)
    mixed += y1 * tl.load(gate_ptr + gates + gate_at, mask=mask, other=0.0)
    mixed += y2 * tl.load(gate_ptr + 2 * gates + gate_at, mask=mask, other=0.0)
    mixed += y3 * tl.load(gate_ptr + 3 * gates + gate_at, mask=mask, other=0.0)
    w_at = c[:, None] * n_out + n[None, :]
    w = tl.load(w_ptr + w_at, mask=inside[:, None] & n_inside[None, :], other=0.0)
    total = tl.dot(mixed.to(tl.float16), w)
    out_mask = there[:, None] & n_inside[None, :]
    if project:
        i = tl.arange(0, in_padded)
        i_inside = i < n_in
        x_at = p[:, None] * n_in + i[None, :]
        x = tl.load(x_ptr + x_at, mask=there[:, None] & i_inside[None, :], other=0.0)
        w_at = i[:, None] * n_out + n[None, :]
        w = tl.load(project_ptr + w_at, mask=i_inside[:, None] & n_inside[None, :], other=0.0)
        total = tl.dot(x, w, total)
    else:
        x = tl.load(x_ptr + p[:, None] * n_out + n[None, :], mask=out_mask, other=0.0)
        total += x.to(tl.float32)
    total += tl.load(b_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + p[:, None] * n_out + n[None, :],
        tl.maximum(total, 0.0).to(tl.float16),
        mask=out_mask,
    )


def _padded(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))  # the sizes that a matrix unit takes


def _stages(channels: int) -> int:
    return STAGES if channels == _padded(channels) else 1


def light_convs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Dense 3x3 convolutions of several streams side by side, with bias and ReLU.

    `x` is (S, b, h, w, c), or (1, b, h, w, c) if it is the same for all streams. `weight` is
    (S, 9, c in, c out), `bias` (S, c). Returns (S, b, h, w, c) float16.
    """
    x = x.contiguous()
    streams = len(weight)
    batch, height, width, channels = x.shape[1:]
    y = torch.empty((streams, *x.shape[1:]), dtype=torch.float16, device=x.device)
    pixels = batch * height * width
    grid = (triton.cdiv(pixels, PIXELS), streams)
    _light_kernel[grid](
        x, weight, bias, y, x.stride(0) if len(x) > 1 else 0, pixels, height, width,
        channels=channels, padded=_padded(channels), block=PIXELS, stages=_stages(channels),
        num_warps=WARPS,
    )  # fmt: skip
    return y


def stem(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The 7x7 convolution with stride 2, bias and ReLU.

    `x` is padded: (b, 2h + 6, 2w + 8, 4). `weight` is (7, 32, c): for each row eight pixels of four
    channels, of which the first pixel and the last channel are zero. Returns (b, h, w, c) float16.
    """
    x = x.contiguous()
    batch = x.shape[0]
    height = x.shape[1] // 2 - 3
    width = x.shape[2] // 2 - 4
    channels = weight.shape[2]
    y = torch.empty((batch, height, width, channels), dtype=torch.float16, device=x.device)
    pixels = batch * height * width
    _stem_kernel[(triton.cdiv(pixels, PIXELS),)](
        x, weight, bias, y, pixels, height, width,
        channels=channels, padded=_padded(channels), block=PIXELS, num_warps=WARPS,
    )  # fmt: skip
    return y


def leave(
    streams: Sequence[torch.Tensor],
    gates: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    project: torch.Tensor | None,
) -> torch.Tensor:
    """The end of a block: gated sum of the streams, pointwise convolution, residual, ReLU.

    The four `streams` are (b, h, w, c), `gates` (4, b, c) float32, `weight` (c, n), `bias` (n,).
    `x` is the input of the block: (b, h, w, n), or (b, h, w, m) with a `project` (m, n). Returns
    (b, h, w, n) float16.
    """
    x = x.contiguous()
    batch, height, width, n_in = x.shape
    mid, n_out = weight.shape
    out = torch.empty((batch, height, width, n_out), dtype=torch.float16, device=x.device)
    pixels = batch * height * width
    _leave_kernel[(triton.cdiv(pixels, LEAVE_PIXELS),)](
        *streams, gates, weight, bias, x, x if project is None else project, out,
        pixels, height * width,
        mid=mid, mid_padded=_padded(mid), n_in=n_in, in_padded=_padded(n_in),
        n_out=n_out, out_padded=_padded(n_out),
        project=project is not None, block=LEAVE_PIXELS, num_warps=WARPS,
    )  # fmt: skip
    return out
