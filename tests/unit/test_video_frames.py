"""Frames by index: exactly the pixels of a full decode, from as few packets as possible."""

from __future__ import annotations

import av
import clips
import numpy as np
import pytest

from streamproc.errors import VideoError
from streamproc.video import open_video
from streamproc.video.pixels import Orientation
from streamproc.video.source import open_stream

SHARED_CODECS = (
    "bframes_h264.mp4",
    "h264.mp4",
    "hevc.mp4",
    "mpeg4.avi",
    "rotated90_h264.mp4",
    "truncated_h264.mp4",
    "vp9.webm",
)
BROKEN_ON_PURPOSE = {"truncated_h264.mp4"}


def reference(path):
    """The (pts, upright RGB) of each frame of a full decode, without damaged packets."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    continue
                frames += [
                    (p.pts, Orientation.of(p).turn(p.to_ndarray(format="rgb24"))) for p in pictures
                ]
        except av.FFmpegError:
            pass
    return frames


def random_box(rng, width, height):
    """A random box within a picture of this size."""
    x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
    return x0, y0, int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1))


def wrong_frames(video, expected, wanted, rng):
    """The wanted frames that did not come, or of which some crop differs from the full decode."""
    right = []
    for frame in video.frames(np.array(wanted, np.int64)):
        whole = expected[frame.frame_index]
        assert whole.shape == (frame.height, frame.width, 3) == (video.height, video.width, 3)
        boxes = [random_box(rng, frame.width, frame.height) for _ in range(3)]
        if all(
            (frame.crop_rgb((x0, y0, x1, y1)) == whole[y0:y1, x0:x1]).all()
            for x0, y0, x1, y1 in boxes
        ):
            right.append(frame.frame_index)
    assert right == sorted(right)
    return sorted(set(wanted) - set(right))


def check_against_full_decode(path, seed, *, rounds=10, **options):
    """Compare random frames and crops of a file with a full decode; return the video."""
    rng = np.random.default_rng(seed)
    frames = reference(path)
    with open_video(path, **options) as video:
        assert video.frame_count == len(frames)
        if video.frame_table.exact:
            assert [pts for pts, _ in frames] == sorted({pts for pts, _ in frames})
        expected = [pixels for _, pixels in frames]
        for turn in range(rounds):
            video.seek_gap_bytes = 0 if turn % 2 else 4 << 20
            count = min(video.frame_count, (1, 2, 3, 5, 10, 25)[turn % 6])
            wanted = np.sort(rng.choice(video.frame_count, count, replace=False)).tolist()
            assert wrong_frames(video, expected, wanted, rng) == []
            assert video.undecodable == []
        return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the tests of this module share."""
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize("name", clips.CLIPS)
def test_wanted_frames_are_those_of_a_full_decode(name, folder):
    """Any subset of frames has the pixels of a full decode, for each codec and container."""
    video = check_against_full_decode(clips.make(name, folder), seed=1)
    assert not video.fell_back


@pytest.mark.parametrize("name", SHARED_CODECS)
def test_shared_files_are_decoded_exactly(shared, name):
    """Files that other programs made have the pixels of a full decode, or are refused."""
    path = shared / "data" / "codecs" / name
    if name in BROKEN_ON_PURPOSE:
        with pytest.raises(VideoError, match="moov"):
            open_video(path)
    else:
        check_against_full_decode(path, seed=2, rounds=4)


def test_no_shared_file_is_left_out(shared):
    """The folder of shared files holds exactly those that are tested."""
    assert {path.name for path in (shared / "data" / "codecs").iterdir()} == set(SHARED_CODECS)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["h264_open_gop", "hevc_open_gop", "vp9_alt_ref", "mpeg2", "av1"])
def test_thread_count_changes_no_pixel(name, threads, folder):
    """Decoding with one thread and with three gives the same pixels."""
    check_against_full_decode(clips.make(name, folder), seed=3, decode_threads=threads)


@pytest.mark.parametrize("name", ["h264", "h264_open_gop", "hevc_open_gop"])
@pytest.mark.parametrize("shift", [-5, -15])
def test_edit_list_hides_frames(name, shift, folder):
    """Frames before the edit list's start are no frames, though those after it may need them."""
    options = {"avoid_negative_ts": "disabled"}
    path = clips.remux(
        clips.make(name, folder), folder / f"{name}{shift}.mp4", shift=shift, options=options
    )
    video = check_against_full_decode(path, seed=4)
    assert video.frame_count == 60 + shift
    assert video.frame_table.pts_seconds[0] == 0


@pytest.mark.parametrize("name", ["h264_ts", "hevc_ts", "mpeg2", "mpeg2_ts"])
def test_recording_that_starts_in_mid_group(name, folder):
    """Pictures before the first key frame, or that need pictures before it, are no frames."""
    source = clips.make(name, folder)
    path = clips.cut(source, folder / f"late_{source.name}", keep_from=0.0)
    data = source.read_bytes()
    step = 2048 if path.suffix == ".mpg" else 188
    path.write_bytes(data[len(data) // 7 // step * step :])
    check_against_full_decode(path, seed=5)


def wanted_of(*frames):
    """Frame numbers as `frames` takes them."""
    return np.array(frames, np.int64)


def read(video, *frames):
    """The numbers of the frames that come when these are wanted."""
    return [frame.frame_index for frame in video.frames(wanted_of(*frames))]


def test_unneeded_groups_are_not_sent(folder):
    """One frame of a later group costs the packets from its key frame on, and no more."""
    with open_video(clips.make("h264_no_b", folder)) as video:
        assert read(video, 26) == [26]
        assert video.packets_sent == 3
        assert read(video, 26, 50) == [26, 50]
        assert video.packets_sent == 3 + 3 + 3


def test_frames_of_one_group_are_read_in_one_go(folder):
    """Three frames of one group cost the packets from its start to the last of them."""
    with open_video(clips.make("h264_no_b", folder)) as video:
        assert read(video, 24, 30, 35) == [24, 30, 35]
        assert video.packets_sent == 12


@pytest.mark.parametrize("name", ["h264", "h264_pyramid", "hevc", "mpeg2", "mpeg4_b"])
def test_disposable_frames_are_skipped(name, folder):
    """Pictures that no other needs are not decoded unless they are wanted."""
    with open_video(clips.make(name, folder)) as video:
        table = video.frame_table
        assert table.disposable.sum() >= 10
        wanted = np.flatnonzero(~table.disposable)
        assert [frame.frame_index for frame in video.frames(wanted)] == wanted.tolist()
        assert (
            video.packets_sent == video.frames_decoded == video.frame_count - table.disposable.sum()
        )


@pytest.mark.parametrize(
    "name", ["h264", "h264_mkv", "h264_ts", "h264_flv", "vp9", "mpeg2", "mjpeg_avi", "hevc_ts"]
)
def test_far_frames_are_reached_by_seeking(name, folder):
    """A far frame is reached by one seek, without falling back."""
    with open_video(clips.make(name, folder)) as video:
        video.seek_gap_bytes = 0
        assert read(video, 50) == [50]
        assert video.seeks == 1
        assert not video.fell_back


def test_table_says_what_a_frame_costs(folder):
    """Each frame's start comes before it in the file and in time, in open groups as well."""
    with open_video(clips.make("hevc_open_gop", folder)) as video:
        table = video.frame_table
        keys = sorted(set(table.start_order.tolist()))
        assert len(keys) == 5
        assert (table.start_order <= table.decode_order).all()
        for frame in range(len(table)):
            key_frame = int(np.flatnonzero(table.decode_order == table.start_order[frame])[0])
            assert table.pts_seconds[key_frame] <= table.pts_seconds[frame]


def test_refresh_without_key_frames_is_read_from_the_start(folder):
    """Key frames that the container flags wrongly are not believed.

    The encoder of this file refreshes the picture gradually.
    """
    with open_video(clips.make("h264_intra_refresh", folder)) as video:
        assert set(video.frame_table.start_order.tolist()) == {0}


def test_output_order_counts_where_time_stamps_cannot(folder):
    """Where time stamps are in the wrong order, frames are numbered as they come out."""
    with open_video(clips.make("h264_avi", folder)) as video:
        assert not video.frame_table.exact
        assert video.frame_count == 60
        assert (np.diff(video.frame_table.pts_seconds) != 0).all()


def test_frames_are_given_as_soon_as_they_are_decoded(folder):
    """The first frame comes after fewer than five packets were read."""
    with open_video(clips.make("h264_no_b", folder), decode_threads=1) as video:
        frames = video.frames(np.arange(60))
        assert next(frames).frame_index == 0
        assert video.packets_sent < 5
        assert [frame.frame_index for frame in frames] == list(range(1, 60))


def test_frames_outlive_their_video(folder):
    """A frame can be cropped after its video is closed."""
    with open_video(clips.make("h264", folder)) as video:
        frame = next(video.frames(wanted_of(7)))
    assert frame.crop_rgb((0, 0, 4, 4)).shape == (4, 4, 3)
    assert repr(frame) == "Frame(7, 96x72, 0.280 s)"


@pytest.mark.parametrize("wanted", [[3, 3], [4, 2], [-1], [60]])
def test_wanted_must_ascend_within_the_video(wanted, folder):
    """Frame numbers that do not ascend or lie outside the video are refused."""
    with open_video(clips.make("h264", folder)) as video, pytest.raises(ValueError, match="ascend"):
        video.frames(np.array(wanted))


def test_no_frames_wanted(folder):
    """Wanting no frames reads no packet."""
    with open_video(clips.make("h264", folder)) as video:
        assert read(video) == []
        assert video.packets_sent == 0


@pytest.mark.parametrize("name", ["h264", "h264_mkv", "vp9", "mjpeg_avi"])
def test_cut_off_file_gives_what_it_has(name, folder):
    """A copy that broke off holds its first frames; what it promised beyond them is counted."""
    whole = clips.make(name, folder)
    if whole.suffix == ".mp4":
        whole = clips.remux(whole, folder / "faststart.mp4", options={"movflags": "faststart"})
    path = clips.cut(whole, folder / f"cut_{whole.name}", keep_to=0.6)
    video = check_against_full_decode(path, seed=6)
    assert 25 <= video.frame_count <= 40
    assert video.frame_count + video.missing_frames == pytest.approx(60, abs=1)
    assert video.missing_seconds == pytest.approx(video.missing_frames / clips.RATE, abs=0.09)


def test_whole_file_with_longer_sound_misses_nothing(folder):
    """Sound that is longer than the pictures does not count as missing frames."""
    for suffix in ("mkv", "mp4"):
        path = clips.with_sound(clips.make("h264", folder), folder / f"sound.{suffix}", seconds=4.0)
        with open_video(path) as video:
            assert (video.frame_count, video.missing_frames, video.missing_seconds) == (60, 0, 0.0)
            assert read(video, 3, 59) == [3, 59]


@pytest.mark.parametrize(
    "name", ["h264", "hevc_open_gop", "vp9", "av1", "mpeg4_b", "mjpeg_avi", "h264_ts"]
)
def test_damage_in_the_middle_costs_only_its_frames(name, folder):
    """Every frame comes or is listed as undecodable, and undamaged groups are exact."""
    source = clips.make(name, folder)
    path = clips.damage(source, folder / f"damaged_{source.name}")
    with open_video(path) as video:
        came = read(video, *range(video.frame_count))
        assert sorted(came + video.undecodable) == list(range(video.frame_count))
        first_group = [f for f in range(10) if video.frame_table.start_order[f] == 0]
        expected = [pixels for _, pixels in reference(source)]
        assert wrong_frames(video, expected, first_group, np.random.default_rng(7)) == []


def test_file_that_changes_is_noticed(folder):
    """A file that changes while it is open raises a VideoError."""
    path = clips.make("h264", folder).rename(folder / "changing.mp4")
    with open_video(path) as video:
        path.write_bytes(clips.make("h264_no_b", folder).read_bytes())
        with pytest.raises(VideoError, match="changed"):
            read(video, 40)


class SeekingWrongly:
    """A container of PyAV that gives other packets than the file's once it has been sought in."""

    def __init__(self, container, packets_after_seek):
        self._container = container
        self._packets_after_seek = packets_after_seek
        self._has_sought = False

    def seek(self, *arguments, **options):
        """Seek as PyAV does."""
        self._container.seek(*arguments, **options)
        self._has_sought = True

    def demux(self, stream):
        """The file's packets, changed after a seek."""
        packets = self._container.demux(stream)
        return self._packets_after_seek(packets) if self._has_sought else packets

    def close(self):
        """Close the file."""
        self._container.close()


def at_other_times(packets):
    """Each packet with another time, as formats give that guess times after a seek."""
    for packet in packets:
        if packet.pts is not None:
            packet.pts += 1
        yield packet


def without_the_second(packets):
    """All packets but the second one."""
    for position, packet in enumerate(packets):
        if position != 1:
            yield packet


@pytest.mark.parametrize("packets_after_seek", [at_other_times, without_the_second])
def test_packets_after_a_seek_that_are_not_the_indexed_ones_are_not_believed(
    packets_after_seek, folder, monkeypatch
):
    """Where a seek leads to other packets than expected, the file is read from its start."""
    path = clips.make("h264", folder)
    expected = [pixels for _, pixels in reference(path)]

    def open_wrong_stream(*arguments):
        container, stream = open_stream(*arguments)
        return SeekingWrongly(container, packets_after_seek), stream

    monkeypatch.setattr("streamproc.video.reader.open_stream", open_wrong_stream)
    with open_video(path) as video:
        video.seek_gap_bytes = 0
        assert wrong_frames(video, expected, [13, 50], np.random.default_rng(8)) == []
        assert video.undecodable == []
        assert video.seeks == 1


def pretend_starts(video, every):
    """Let the index claim a start at each `every`-th packet."""
    starts = video._probed.timeline.starts
    ordinals = video._probed.timeline.ordinals
    starts[:] = ordinals // every * every


@pytest.mark.parametrize("every", [1, 3, 6])
def test_starts_that_are_none_lead_back_to_the_beginning(every, folder):
    """Where nothing decodes from a start, an earlier one is tried, then the file's beginning."""
    path = clips.make("h264_one_gop", folder)
    expected = [pixels for _, pixels in reference(path)]
    with open_video(path) as video:
        pretend_starts(video, every)
        assert wrong_frames(video, expected, [20, 40, 55], np.random.default_rng(10)) == []
        assert video.fell_back
        assert video.undecodable == []
