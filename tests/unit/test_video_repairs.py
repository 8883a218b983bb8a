"""Videos that are not as they should be: damaged, of two sizes, of unknown colours, palettes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import clips
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from streamproc.video import open_video

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN_MATRICES = {"bt2020c": 10, "YCgCo": 8, "ICtCp": 14}
SIZE = {"width": 96, "height": 72}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for the clips of this file."""
    return tmp_path_factory.mktemp("clips")


def read(video, wanted=None) -> dict[int, np.ndarray]:
    """The pictures that come, by frame index; all frames unless some are wanted."""
    indices = np.arange(video.frame_count) if wanted is None else np.array(wanted)
    return {frame.frame_index: frame.rgb() for frame in video.frames(indices)}


def packets_of(path) -> list[tuple[int, int, int]]:
    """Position, size and key flag of each packet, in file order."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size, int(p.is_keyframe)) for p in container.demux(video=0) if p.size]


def overwritten(path, packet: int) -> Path:
    """A copy of a clip whose packet has noise in its middle."""
    content = bytearray(path.read_bytes())
    position, size, _ = packets_of(path)[packet]
    start = position + size // 3
    content[start : start + size // 3] = b"\x5a" * (size // 3)
    copy = path.with_name(f"hole_{packet}_{path.name}")
    copy.write_bytes(content)
    return copy


def marked(path) -> list[float]:
    """The times of the frames that FFmpeg marks as corrupt."""
    times = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            times += [frame.time for frame in frames if frame.is_corrupt]
    return times


@pytest.mark.parametrize("name", ["h264", "mpeg4_b", "msmpeg4v3"])
@pytest.mark.parametrize("wanted", ["all", "every fourth"])
def test_frames_marked_as_corrupt_and_those_made_of_them_are_left_out(name, wanted, folder):
    """What FFmpeg marks, and what follows up to the next clean start, counts as undecodable."""
    clip = replace(clips.CLIPS[name], width=320, height=240)
    path = clips.write(folder / f"wide_{name}.{clip.suffix}", clip)
    keys = [at for at, packet in enumerate(packets_of(path)) if packet[2]]
    damaged = overwritten(path, keys[1])
    times = marked(damaged)
    assert times, "the test needs damage that FFmpeg notices"
    with open_video(path) as video:
        whole = read(video)
        group = video.frame_table.decode_order >= keys[1]
        group &= video.frame_table.start_order <= keys[1]
    with open_video(damaged) as video:
        step = 1 if wanted == "all" else 4
        asked = range(0, video.frame_count, step)
        came = read(video, asked)
        assert sorted([*came, *video.undecodable]) == list(asked)
        given = {round(float(video.frame_table.pts_seconds[index]), 4) for index in came}
    assert not given & {round(time, 4) for time in times}
    assert not set(came) & set(np.flatnonzero(group).tolist())
    for index, pixels in came.items():
        np.testing.assert_array_equal(pixels, whole[index])


def test_a_lost_packet_of_a_transport_stream_costs_what_is_made_of_it(folder):
    """Frames that a transport stream's lost packets damaged are left out, all others are exact."""
    clip = replace(clips.CLIPS["h264_ts"], width=320, height=240)
    path = clips.write(folder / "whole.ts", clip)
    content = path.read_bytes()
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    del packets[len(packets) // 3]
    lost = folder / "lost.ts"
    lost.write_bytes(b"".join(packets))
    times = marked(lost)
    assert times
    with open_video(path) as video:
        whole = read(video)
    with open_video(lost) as video:
        came = read(video)
        assert video.undecodable
        given = {round(float(video.frame_table.pts_seconds[index]), 4) for index in came}
    assert not given & {round(time, 4) for time in times}
    assert all(np.abs(pixels.astype(int) - whole[i]).mean() < 10 for i, pixels in came.items())


def test_frames_of_another_size_are_scaled_to_the_first(folder):
    """Boxes refer to the first picture's size, so frames of another size are scaled to it."""
    with open_video(clips.write_with_two_sizes(folder / "sizes.avi")) as video:
        assert (video.width, video.height, video.frame_count) == (96, 72, 20)
        (small, large) = video.frames(np.array([9, 10]))
        assert {small.rgb().shape, large.rgb().shape} == {(72, 96, 3)}
        assert large.crop_rgb((10, 10, 50, 60)).shape == (50, 40, 3)
        assert (video.scaled_frames, video.undecodable) == (1, [])


@pytest.mark.parametrize("matrix", UNKNOWN_MATRICES)
def test_an_unknown_colour_matrix_is_taken_as_the_default(matrix, folder):
    """Colours that swscale cannot convert from are converted as if the file did not name them."""
    plain = clips.make("h264", folder)
    tagged = filtered(plain, folder / f"{matrix}.mp4", UNKNOWN_MATRICES[matrix])
    with open_video(plain) as video:
        expected = read(video, [0, 30])
        assert video.unknown_matrix is None
    with open_video(tagged) as video:
        for index, pixels in read(video, [0, 30]).items():
            np.testing.assert_array_equal(pixels, expected[index])
        (frame,) = video.frames(np.array([30]))
        np.testing.assert_array_equal(frame.crop_rgb((5, 6, 60, 70)), expected[30][6:70, 5:60])
        assert video.unknown_matrix == UNKNOWN_MATRICES[matrix]


def filtered(source: Path, target: Path, options: int | str) -> Path:
    """A copy whose H.264 headers say something else; a number is a colour matrix."""
    if isinstance(options, int):
        options = f"matrix_coefficients={options}"
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        change = BitStreamFilterContext(f"h264_metadata={options}", stream, copy)
        for packet in reading.demux(stream):
            if packet.dts is not None:
                mux(writing, copy, change.filter(packet))
        mux(writing, copy, change.filter(None))
    return target


def mux(container, stream, packets) -> None:
    """Write packets to a stream."""
    for packet in packets:
        packet.stream = stream
        container.mux(packet)


@pytest.mark.parametrize(("container", "upright"), [(0, (72, 96)), (180, (96, 72))])
def test_the_orientation_of_an_sei_message_counts_unless_the_container_has_one(
    container, upright, folder
):
    """A picture may be turned by an SEI message; what the container says goes before it."""
    clip = replace(clips.CLIPS["h264"], rotation=container)
    plain = clips.write(folder / f"turned_{container}.mp4", clip)
    turned = filtered(
        plain, folder / f"sei_{container}.mp4", "display_orientation=insert:rotate=90"
    )
    with open_video(turned) as video:
        assert (video.width, video.height) == upright
        assert {pixels.shape for pixels in read(video).values()} == {(*upright[::-1], 3)}


def write_palette(path: Path) -> Path:
    """An AVI of 20 raw pictures of palette colours; the palette changes at picture 10."""
    palettes = [np.zeros((256, 4), np.uint8), np.zeros((256, 4), np.uint8)]
    palettes[0][:, 1:] = np.arange(256)[:, None]
    palettes[1][:, 2] = 255 - np.arange(256)
    for palette in palettes:
        palette[:, 0] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=clips.RATE)
        stream.width = SIZE["width"]
        stream.height = SIZE["height"]
        stream.pix_fmt = "pal8"
        for number in range(20):
            image = clips.picture(number, **SIZE)[:, :, 0]
            frame = av.VideoFrame.from_ndarray((image, palettes[number // 10]), format="pal8")
            frame.pts = number
            frame.time_base = Fraction(1, clips.RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_palette_avi_read_sparsely_equals_reading_all(folder):
    """The palette comes with one packet, so that packet is decoded whichever frames are wanted."""
    path = write_palette(folder / "palette.avi")
    with open_video(path) as video:
        whole = read(video)
    assert len(whole) == 20
    for wanted in ([5, 9], [15], [3, 12, 19]):
        with open_video(path) as video:
            for index, pixels in read(video, wanted).items():
                np.testing.assert_array_equal(pixels, whole[index])
