"""Opening videos: a file that cannot be used gets one clear line, and no other file is read."""

from __future__ import annotations

import os

import av
import clips
import numpy as np
import pytest
from programs import run_program

from streamproc.errors import VideoError
from streamproc.video import Limits, open_video
from streamproc.video.truncation import is_truncated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the tests of this module share."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def good(folder):
    """A file that opens."""
    return clips.make("h264", folder)


def refused(path, **options):
    """The one line that says why a file is refused."""
    with pytest.raises(VideoError) as caught:
        open_video(path, **options)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


def test_what_a_video_tells(good):
    """An open video tells its path, codec, size, frames and times."""
    with open_video(good) as video:
        assert (video.path, video.codec_name, video.pixel_format) == (good, "h264", "yuv420p")
        assert (video.width, video.height, video.frame_count) == (96, 72, 60)
        assert (video.missing_frames, video.missing_seconds) == (0, 0.0)
        assert video.frame_table.pts_seconds == pytest.approx(np.arange(60) / clips.RATE)
        assert repr(video) == "Video(h264.mp4, h264 96x72, 60 frames)"


@pytest.mark.parametrize(
    ("rotation", "hflip", "size"),
    [(90, False, (72, 96)), (180, False, (96, 72)), (270, False, (72, 96))],
)
def test_size_is_upright(rotation, hflip, size, folder):
    """Width and height are those of the upright picture."""
    with open_video(clips.make(f"h264_rotated_{rotation}", folder)) as video:
        assert (video.width, video.height) == size


def test_rotation_is_the_one_that_players_apply(folder):
    """A rotated picture is turned counter-clockwise by the angle that the file gives."""
    path = clips.make("h264_rotated_90", folder)
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
        stored = picture.to_ndarray(format="rgb24")
        degrees = picture.rotation
    with open_video(path) as video:
        upright = next(video.frames(np.array([0]))).rgb()
    assert (upright == np.rot90(stored, degrees // 90)).all()


def test_missing_file(tmp_path):
    """A missing file is refused as such."""
    assert "no such file" in refused(tmp_path / "none.mp4")


def test_directory(tmp_path):
    """A folder is refused as no plain file."""
    assert "not a plain file" in refused(tmp_path)


def test_device_and_pipe(tmp_path):
    """A pipe is refused without being opened."""
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    assert "not a plain file" in refused(pipe)


def test_empty_file(tmp_path):
    """An empty file is refused as such."""
    path = tmp_path / "empty.mp4"
    path.touch()
    assert "is empty" in refused(path)


def test_text_named_mp4(tmp_path):
    """A text named .mp4 is refused as no video."""
    path = tmp_path / "text.mp4"
    path.write_text("this is no video\n" * 100)
    assert "cannot be read as a video" in refused(path)


def test_noise_named_mp4(tmp_path):
    """Noise named .mp4 is refused in one line."""
    path = tmp_path / "noise.mp4"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes())
    refused(path)


def test_sound_only(tmp_path):
    """A file with sound alone is refused with what it holds."""
    assert "holds no video (it holds: audio)" in refused(clips.write_audio(tmp_path / "sound.mp4"))


def test_cut_off_before_its_index(good, tmp_path):
    """An mp4 that lacks its index is refused with that reason."""
    path = clips.cut(good, tmp_path / "cut.mp4", keep_to=0.7)
    assert "cut off before its index (moov)" in refused(path)


def test_no_frames(tmp_path):
    """A video without frames is refused in one line."""
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = 96
        stream.height = 72
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()
    refused(path)


def test_unknown_codec(good, tmp_path):
    """A file of an unknown codec is refused with that reason."""
    path = tmp_path / "unknown.mp4"
    path.write_bytes(good.read_bytes().replace(b"avc1", b"zzzz"))
    assert "decoder" in refused(path) or "decoded" in refused(path)


def test_broken_parameters(good, tmp_path):
    """A file whose packets no decoder understands is refused."""
    data = bytearray(good.read_bytes())
    start = data.find(b"mdat") + 4
    data[start : start + 50_000] = (
        np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    )
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    assert "no picture can be decoded" in refused(path)


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n"],
)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "ffconcat", "mkv"])
def test_lists_of_other_files_are_refused(text, suffix, good, tmp_path):
    """A text that names other files opens none of them, whatever it is called."""
    neighbour = tmp_path / "neighbour.mp4"
    neighbour.write_bytes(good.read_bytes())
    path = tmp_path / f"list.{suffix}"
    path.write_text(text.format(neighbour.name))
    refused(path)


@pytest.mark.parametrize(
    "name", ["concat:a.mp4|b.mp4", "http:x.mp4", "a%03d.mp4", "subfile,,start,0,end,9,,:x.mp4", "-"]
)
def test_odd_names_are_only_names(name, good, tmp_path):
    """A file name that looks like an address or a pattern opens that file."""
    path = tmp_path / name
    path.write_bytes(good.read_bytes())
    with open_video(path) as video:
        assert video.frame_count == 60


def test_titles_need_not_be_utf8(tmp_path):
    """A title that is not UTF-8 does not keep a file from being opened."""
    path = tmp_path / "title.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE-IN-LATIN-1"
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = 96
        stream.height = 72
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(clips.picture(0, 96, 72), format="rgb24").reformat(
            format="yuvj420p"
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(
        path.read_bytes().replace(b"TITLE-IN-LATIN-1", "Aufnahme Tür éé".encode("latin-1") + b" ")
    )
    with open_video(path) as video:
        assert video.frame_count == 1


def test_relative_path(good, monkeypatch):
    """A relative path opens like an absolute one."""
    monkeypatch.chdir(good.parent)
    with open_video(type(good)(good.name)) as video:
        assert video.frame_count == 60


@pytest.mark.parametrize(
    ("setting", "value", "came"),
    [
        ("max_pixels_per_frame", 96 * 72 - 1, "6,912"),
        ("max_frames", 59, "60"),
        ("max_duration_seconds", 2.0, "2.4"),
        ("max_file_bytes", 1000, "bytes"),
    ],
)
@pytest.mark.parametrize("name", ["h264", "h264_mkv", "h264_ts", "vp9"])
def test_limits(name, setting, value, came, folder):
    """A file over a limit is refused with the limit, what came, and the setting."""
    text = refused(clips.make(name, folder), limits=Limits(**{setting: value}))
    assert setting in text
    assert "limit" in text
    if name == "h264":
        assert came in text


def test_limits_allow_what_is_exactly_on_them(good):
    """A file that is exactly on every limit opens and gives all its frames."""
    limits = Limits(96 * 72, 60, 2.4, good.stat().st_size)
    with open_video(good, limits=limits) as video:
        assert [frame.frame_index for frame in video.frames(np.arange(60))] == list(range(60))


def test_frame_that_grows_over_the_limit_is_not_decoded(tmp_path):
    """Frames that grow over the limit in mid-stream are undecodable, and the others come."""
    path = clips.write_with_two_sizes(tmp_path / "sizes.avi", larger=(192, 144))
    with open_video(path, limits=Limits(max_pixels_per_frame=96 * 72)) as video:
        assert [frame.frame_index for frame in video.frames(np.arange(20))] == list(range(10))
        assert video.undecodable == list(range(10, 20))


@pytest.mark.parametrize(
    "name", ["h264_fragmented", "h264_mkv", "vp9", "mjpeg_avi", "h264_ts", "h264_raw"]
)
def test_whole_files_are_not_taken_for_cut(name, folder):
    """A whole file does not count as cut off, and a cut one does where that can be seen."""
    path = clips.make(name, folder)
    assert not is_truncated(path)
    if path.suffix in {".mkv", ".webm", ".avi", ".mp4"}:
        assert is_truncated(clips.cut(path, folder / f"half{path.suffix}", keep_to=0.8))


def test_nothing_is_printed(good, tmp_path):
    """Reading a damaged file prints nothing on stderr."""
    damaged = clips.damage(good, tmp_path / "damaged.mp4")
    done = run_program("count_frames.py", damaged)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) > 40
