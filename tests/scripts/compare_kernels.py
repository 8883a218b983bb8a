"""Compares the GPU's kernels with torch's layers, at shapes that have odd sizes and all branches.

Run it with TRITON_INTERPRET=1, on a CPU. It prints a line if all are alike.
"""

from __future__ import annotations

import torch

from streamproc.reid import gpu_kernels, gpu_network

# Channels, inputs, streams, height, width.
LIGHT_CONVS = [(16, 1, 4, 8, 4), (24, 3, 3, 6, 5), (32, 2, 2, 4, 4), (64, 2, 2, 3, 3)]
STEM_CHANNELS = [16, 48]
# Channels within, in and out; the input is projected where the last two differ.
LEAVE = [(16, 16, 64), (16, 64, 64), (24, 64, 96), (24, 96, 96), (32, 128, 128)]


def half(*shape):
    """Random numbers in half precision."""
    return torch.randn(shape).half()


def compare_light_convs(channels, inputs, streams, height, width):
    """Compare one layer of depthwise convolutions."""
    pixels = half(inputs, 3, height, width, channels)
    weight = half(streams, 9, channels, channels) / 10
    bias = half(streams, channels)
    torch.testing.assert_close(
        gpu_kernels.light_convs(pixels, weight, bias),
        gpu_network.light_convs(pixels, weight, bias),
        atol=0.01,
        rtol=0.01,
    )


def compare_stem(channels):
    """Compare the first layer."""
    layer = half(2, 38, 24, 4), half(7, 32, channels) / 10, half(channels)
    torch.testing.assert_close(
        gpu_kernels.stem(*layer), gpu_network.stem(*layer), atol=0.01, rtol=0.01
    )


def compare_leave(channels, channels_in, channels_out):
    """Compare the end of a block."""
    streams = [half(2, 8, 6, channels) for _ in range(4)]
    gates = torch.rand(4, 2, channels)
    weight = half(channels, channels_out) / 5
    bias = half(channels_out)
    block_input = half(2, 8, 6, channels_in)
    project = None if channels_in == channels_out else half(channels_in, channels_out) / 5
    end = streams, gates, weight, bias, block_input, project
    torch.testing.assert_close(
        gpu_kernels.leave(*end), gpu_network.leave(*end), atol=0.02, rtol=0.01
    )


torch.manual_seed(0)
for shape in LIGHT_CONVS:
    compare_light_convs(*shape)
for count in STEM_CHANNELS:
    compare_stem(count)
for shape in LEAVE:
    compare_leave(*shape)
print("all alike")
