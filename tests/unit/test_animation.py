"""Animated WebP: what Pillow reads back is what was put in."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, WebPImagePlugin

from streamproc.animation import encode_strip, encode_webp, strip_size, webp
from streamproc.animation.webp import BACKGROUND_RGB
from streamproc.types import Crop


def crop(colour=(200, 60, 40), *, aspect_ratio=0.5, crop_index=0):
    """A crop with its left half in `colour` and its right half in its negative."""
    pixels = np.empty((256, 128, 3), np.uint8)
    pixels[:, :64] = colour
    pixels[:, 64:] = 255 - np.array(colour, np.uint8)
    return Crop(
        7, crop_index, crop_index, crop_index / 10, (0.0, 0.0, 1.0, 1.0), 0.5, aspect_ratio, pixels
    )


def pictures(data):
    """The decoded pictures (n, size, size, 3) and their durations in ms."""
    image = Image.open(io.BytesIO(data))
    decoded = []
    durations = []
    for position in range(image.n_frames):
        image.seek(position)
        decoded.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    return np.stack(decoded), durations


def place_of_figure(picture):
    """x, y, width and height of what is not background."""
    ys, xs = np.nonzero(np.abs(picture.astype(int) - BACKGROUND_RGB).sum(axis=2) > 90)
    return xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1


def test_each_crop_is_a_picture_shown_as_long_as_the_rate_says():
    """At 10 pictures a second each crop is one picture in its own colour, shown for 100 ms."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    data = encode_webp(
        [crop(colour, crop_index=i) for i, colour in enumerate(colours)], frames_per_second=10
    )
    decoded, durations = pictures(data)
    assert decoded.shape == (3, 256, 256, 3)
    assert durations == [100, 100, 100]
    for picture, colour in zip(decoded, colours, strict=True):
        assert np.abs(picture[128, 90].astype(int) - colour).max() < 12


def test_pictures_that_are_alike_are_not_merged():
    """Five equal crops stay five pictures, which last half a second together."""
    decoded, durations = pictures(encode_webp([crop()] * 5))
    assert (len(decoded), sum(durations)) == (5, 500)


@pytest.mark.parametrize("scaled_bytes", [webp._SCALED_BYTES, 2 * 64 * 64 * 3 // 2, 1])
def test_crops_of_any_size_come_in_their_order(monkeypatch, scaled_bytes):
    """Crops of different sizes keep their order, however many are scaled at once."""
    monkeypatch.setattr(webp, "_SCALED_BYTES", scaled_bytes)
    reds = [20, 240, 60, 200, 130]
    heights = [90, 30, 256, 30, 60]
    crops = [
        replace(
            crop((red, 30, 30), crop_index=i),
            pixels=np.full((height, 40, 3), (red, 30, 30), np.uint8),
        )
        for i, (red, height) in enumerate(zip(reds, heights, strict=True))
    ]
    decoded, _ = pictures(encode_webp(crops, size_px=64))
    assert np.abs(decoded[:, 32, 32, 0].astype(int) - reds).max() < 12


def test_it_loops_for_ever():
    """The file is an animation whose loop count is 0: it repeats without end."""
    image = Image.open(io.BytesIO(encode_webp([crop(), crop()])))
    assert isinstance(image, WebPImagePlugin.WebPImageFile)
    assert (image.is_animated, image.info["loop"]) == (True, 0)


def test_one_crop_is_a_valid_file():
    """One crop gives a file with one picture of the full size."""
    decoded, _ = pictures(encode_webp([crop()]))
    assert decoded.shape == (1, 256, 256, 3)


@given(ratios=st.lists(st.floats(0.05, 12), min_size=1, max_size=4), size_px=st.integers(16, 200))
@example(
    ratios=[0.5, 0.4, 0.5, 0.3], size_px=200
)  # the last is painted where the second was, which was wider
def test_the_shape_comes_back_letter_boxed(ratios, size_px):
    """Each picture shows its own crop alone, centred and in the crop's shape."""
    decoded, _ = pictures(
        encode_webp([crop(aspect_ratio=ratio) for ratio in ratios], size_px=size_px)
    )
    assert decoded.shape == (len(ratios), size_px, size_px, 3)
    for picture, ratio in zip(decoded, ratios, strict=True):
        x, y, width, height = place_of_figure(picture)
        assert abs(width - min(size_px, size_px * ratio)) <= 3
        assert abs(height - min(size_px, size_px / ratio)) <= 3
        assert abs(2 * x + width - size_px) <= 4
        assert abs(2 * y + height - size_px) <= 4


def test_a_walking_person_stays_small_and_close_to_the_crop():
    """50 pictures of soft noise, the worst of a camera, take under 1 MiB and keep 30 dB PSNR."""
    random = np.random.default_rng(1)
    coarse = random.integers(60, 200, (50, 32, 16, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(c).resize((128, 256), Image.Resampling.BICUBIC)) for c in coarse
    ]
    crops = [
        Crop(1, i, i, 0.0, (0.0, 0.0, 1.0, 1.0), 1.0, 0.5, pixels)
        for i, pixels in enumerate(smooth)
    ]
    data = encode_webp(crops)
    assert len(data) < 1 << 20
    figures = pictures(data)[0][:, :, 64:192].astype(int)
    error = np.mean((figures - np.stack(smooth)) ** 2)
    assert 10 * np.log10(255**2 / error) > 30


def test_no_crops_are_refused():
    """Encoding no crops raises a ValueError that asks for one crop or more."""
    with pytest.raises(ValueError, match="one crop or more"):
        encode_webp([])


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_shape_is_refused(ratio):
    """An aspect ratio that is zero, negative or not finite is refused by name."""
    with pytest.raises(ValueError, match="aspect ratio"):
        encode_webp([crop(aspect_ratio=ratio)])


@pytest.mark.parametrize("options", [{"size_px": 8}, {"size_px": 5000}, {"frames_per_second": 0}])
def test_an_impossible_size_or_rate_is_refused(options):
    """A size or a rate out of range raises a ValueError that says what was expected."""
    with pytest.raises(ValueError, match="expected"):
        encode_webp([crop()], **options)


def test_what_the_encoder_raises_is_let_out(monkeypatch):
    """An OSError of the encoder reaches the caller."""

    class Failing:
        @staticmethod
        def create(*_args):
            raise OSError(12, "cannot allocate memory")

    monkeypatch.setattr(webp, "CodecContext", Failing)
    with pytest.raises(OSError, match="cannot allocate"):
        encode_webp([crop()])


def test_colours_are_those_of_the_crop_up_to_the_edge():
    """A crop keeps its colour up to its edge, and nothing of it shows beyond."""
    red = Crop(
        7, 0, 0, 0.0, (0.0, 0.0, 1.0, 1.0), 0.5, 0.4, np.full((64, 32, 3), (220, 30, 40), np.uint8)
    )
    for size_px in (62, 63, 64, 65, 66):
        (picture,) = pictures(encode_webp([red], size_px=size_px))[0].astype(int)
        x, y, width, height = webp._letter_box(0.4, size_px, size_px)
        figure = picture[y : y + height, x : x + width]
        assert np.abs(np.median(figure, axis=(0, 1)) - (220, 30, 40)).max() < 8
        assert (figure[..., 0] - figure[..., 1]).min() > 100
        outside = np.delete(picture, slice(x - 2, x + width + 2), axis=1)
        assert np.abs(outside - webp.BACKGROUND_RGB).max() < 25


def test_a_strip_shows_each_crop_in_a_place_of_its_own():
    """In the order given, whatever the shapes; between them is background."""
    shapes = {(250, 10, 10): 0.5, (10, 250, 10): 0.2, (10, 10, 250): 3.0}
    image = Image.open(
        io.BytesIO(encode_strip([crop(c, aspect_ratio=r) for c, r in shapes.items()]))
    )
    assert image.size == strip_size(3) == (288, 192)
    picture = np.asarray(image.convert("RGB"))
    for number, (colour, ratio) in enumerate(shapes.items()):
        cell = picture[:, 96 * number : 96 * (number + 1)]
        x, y, width, height = place_of_figure(cell)
        assert width / height == pytest.approx(ratio, rel=0.08)
        assert np.abs(cell[96, x + width // 4].astype(int) - colour).max() < 16
        assert (abs(2 * x + width - 96) <= 4, abs(2 * y + height - 192) <= 4) == (True, True)


def test_a_strip_of_no_crops_is_refused():
    """As an animation of none is."""
    with pytest.raises(ValueError, match="one crop or more"):
        encode_strip([])
