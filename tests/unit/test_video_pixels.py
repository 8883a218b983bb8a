"""Crops converted from a part of a picture have the pixels of converting all of it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.video.pixels import _MAX_PARTS_BYTES, _SUBSAMPLING, Converter, Frame, Orientation

WHOLE_ONLY = ["yuv420p10le", "nv12", "yuv410p", "rgb24", "gbrp", "yuva420p"]
SIZES = [
    (640, 360),
    (642, 482),
    (641, 480),
    (640, 481),
    (97, 75),
    (34, 2),
    (1, 1),
    (33, 40),
    (1280, 722),
]
ORIENTATIONS = [Orientation(*flags) for flags in product((False, True), repeat=3)]


def noise(width, height, pixel_format, seed=0, **colour):
    """A picture of noise: the worst case for anything that mixes neighbours."""
    rng = np.random.default_rng(seed)
    picture = av.VideoFrame(width, height, pixel_format)
    for plane in picture.planes:
        octets = np.frombuffer(plane, np.uint8)
        octets[:] = rng.integers(0, 256, octets.size, dtype=np.uint8)
        if pixel_format.endswith("10le"):
            octets[1::2] &= 3
    for name, value in colour.items():
        setattr(picture, name, value)
    return picture


def boxes(width, height, count=40):
    """Random boxes, and those at the corners and edges."""
    rng = np.random.default_rng(1)
    yield (0, 0, width, height)
    yield (width - 1, height - 1, width, height)
    yield (max(0, width - 40), 0, width, min(3, height))
    for _ in range(count):
        x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
        yield x0, y0, int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("pixel_format", [*_SUBSAMPLING, *WHOLE_ONLY])
def test_crop_equals_crop_of_whole_picture(pixel_format, size):
    """A crop has exactly the pixels of the whole converted picture, in one block of memory."""
    width, height = size
    picture = noise(width, height, pixel_format)
    whole = picture.to_ndarray(format="rgb24")
    converter = Converter()
    for x0, y0, x1, y1 in boxes(width, height):
        crop = Frame(0, 0.0, picture, converter).crop_rgb((x0, y0, x1, y1))
        assert crop.flags.c_contiguous
        assert (crop == whole[y0:y1, x0:x1]).all()


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize("colorspace", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p"])
def test_colour_range_and_matrix_are_kept(pixel_format, colorspace, color_range):
    """Crops are exact for each colour matrix and range."""
    picture = noise(320, 240, pixel_format, colorspace=colorspace, color_range=color_range)
    whole = picture.to_ndarray(format="rgb24")
    converter = Converter()
    for x0, y0, x1, y1 in boxes(320, 240, 10):
        assert (
            Frame(0, 0.0, picture, converter).crop_rgb((x0, y0, x1, y1)) == whole[y0:y1, x0:x1]
        ).all()


def test_one_converter_serves_pictures_of_other_colours():
    """A converter that was used for one matrix and range is exact for another."""
    converter = Converter()
    for colorspace, color_range in [(1, 1), (5, 1), (1, 2), (5, 2), (1, 1)]:
        picture = noise(64, 64, "yuv420p", colorspace=colorspace, color_range=color_range)
        whole = picture.to_ndarray(format="rgb24")
        assert (
            Frame(0, 0.0, picture, converter).crop_rgb((3, 3, 60, 60)) == whole[3:60, 3:60]
        ).all()


@pytest.mark.parametrize("pixel_format", WHOLE_ONLY)
def test_other_formats_are_converted_whole_and_once(pixel_format, monkeypatch):
    """A format without parts is converted once for all crops of a frame."""
    calls = []
    original = Converter.rgb
    monkeypatch.setattr(
        Converter, "rgb", lambda self, picture: calls.append(1) or original(self, picture)
    )
    frame = Frame(0, 0.0, noise(64, 48, pixel_format), Converter())
    frame.crop_rgb((1, 1, 9, 9))
    frame.crop_rgb((20, 20, 40, 40))
    assert len(calls) == 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "rgb24"])
@pytest.mark.parametrize(
    ("filter_name", "argument"),
    [("vflip", None), ("setparams", "field_mode=tff")],
    ids=["bottom up", "interlaced"],
)
def test_pictures_stored_otherwise_give_the_pixels_of_the_whole(
    filter_name, argument, pixel_format
):
    """Crops are exact for pictures stored from the bottom up, and for interlaced ones."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=320, height=240, format=pixel_format, time_base=Fraction(1, 25))
    changed = graph.add(filter_name, argument)
    sink = graph.add("buffersink")
    graph.link_nodes(source, changed, sink).configure()
    graph.push(noise(320, 240, pixel_format))
    picture = graph.pull()
    assert picture.interlaced_frame or picture.planes[0].line_size < 0
    whole = picture.to_ndarray(format="rgb24")
    converter = Converter()
    for x0, y0, x1, y1 in boxes(320, 240, 10):
        assert (
            Frame(0, 0.0, picture, converter).crop_rgb((x0, y0, x1, y1)) == whole[y0:y1, x0:x1]
        ).all()


def test_part_is_small():
    """A crop converts a part of the picture that is little larger than itself."""
    converter = Converter()
    Frame(0, 0.0, noise(1280, 720, "yuv420p"), converter).crop_rgb((100, 100, 150, 220))
    assert list(converter._parts) == [(64, 128, "yuv420p")]


def test_what_is_kept_for_parts_is_bounded():
    """Buffers for parts stay below their bound; those dropped are made again and exact.

    Parts of 160 sizes would take 22 MiB together.
    """
    converter = Converter()
    picture = noise(640, 640, "yuv444p")
    whole = picture.to_ndarray(format="rgb24")
    sizes = list(product(range(32, 641, 32), range(32, 257, 32)))
    for width, height in [*sizes, *sizes[:3]]:
        crop = Frame(0, 0.0, picture, converter).crop_rgb((0, 0, width, height))
        assert (crop == whole[:height, :width]).all()
    kept_bytes = 0
    for part in converter._parts.values():
        kept_bytes += sum(plane.size for plane in part.planes)
    assert 4 * 2**20 < kept_bytes <= _MAX_PARTS_BYTES
    assert list(converter._parts)[-3:] == [(*size, "yuv444p") for size in sizes[:3]]


def test_a_part_above_the_bound_is_converted_all_the_same(monkeypatch):
    """A part that is larger than the bound is converted exactly."""
    monkeypatch.setattr("streamproc.video.pixels._MAX_PARTS_BYTES", 1000)
    converter = Converter()
    picture = noise(320, 240, "yuv420p")
    whole = picture.to_ndarray(format="rgb24")
    for x0, y0, x1, y1 in boxes(320, 240, 10):
        assert (
            Frame(0, 0.0, picture, converter).crop_rgb((x0, y0, x1, y1)) == whole[y0:y1, x0:x1]
        ).all()
    assert len(converter._parts) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_boxes_and_pixels_are_upright(pixel_format, orientation):
    """For every orientation boxes and pixels are those of the upright picture."""
    picture = noise(98, 76, pixel_format)
    whole = orientation.turn(picture.to_ndarray(format="rgb24"))
    converter = Converter(orientation)
    frame = Frame(0, 0.0, picture, converter)
    assert whole.shape == (frame.height, frame.width, 3)
    assert (frame.rgb() == whole).all()
    for x0, y0, x1, y1 in boxes(frame.width, frame.height, 20):
        crop = Frame(0, 0.0, picture, converter).crop_rgb((x0, y0, x1, y1))
        assert (crop == whole[y0:y1, x0:x1]).all()


@given(st.sampled_from(ORIENTATIONS), st.integers(1, 30), st.integers(1, 30), st.data())
def test_stored_box_is_what_turning_shows(orientation, width, height, data):
    """Turning the stored box gives the upright box, whatever the orientation."""
    stored = np.arange(width * height * 3).reshape(height, width, 3)
    upright = orientation.turn(stored)
    upright_height, upright_width = upright.shape[:2]
    x0 = data.draw(st.integers(0, upright_width - 1))
    y0 = data.draw(st.integers(0, upright_height - 1))
    x1 = data.draw(st.integers(x0 + 1, upright_width))
    y1 = data.draw(st.integers(y0 + 1, upright_height))
    a, b, c, d = orientation.stored_box((x0, y0, x1, y1), upright_width, upright_height)
    assert (orientation.turn(stored[b:d, a:c]) == upright[y0:y1, x0:x1]).all()


@pytest.mark.parametrize(
    "box", [(-1, 0, 4, 4), (0, 0, 65, 4), (5, 5, 5, 9), (0, 9, 4, 3), (0, 40, 4, 49)]
)
def test_box_outside_is_refused(box):
    """A box that leaves the picture raises a ValueError."""
    frame = Frame(0, 0.0, noise(64, 48, "yuv420p"), Converter())
    with pytest.raises(ValueError, match="leaves the picture of 64x48"):
        frame.crop_rgb(box)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_scaled_picture_is_upright_and_of_the_size_asked_for(orientation):
    """What a detector sees is the upright picture, turned and mirrored as its crops are."""
    picture = av.VideoFrame.from_ndarray(
        np.kron(np.arange(0, 240, 20, np.uint8).reshape(3, 4), np.ones((32, 32), np.uint8)), "gray"
    )
    frame = Frame(0, 0.0, picture, Converter(orientation))
    upright = frame.rgb()
    scaled = frame.scaled_rgb(frame.width // 2, frame.height // 2)
    assert scaled.shape == (frame.height // 2, frame.width // 2, 3)
    middles = (slice(8, None, 16), slice(8, None, 16))
    whole = upright[16::32, 16::32].astype(int)
    np.testing.assert_allclose(scaled[middles].astype(int), whole, atol=2)
