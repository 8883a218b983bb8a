"""Frames by index: whatever the file, exactly the pixels of a full decode, from as few packets as can be."""

from __future__ import annotations

import av
import clips
import numpy as np
import pytest

from streamproc.errors import VideoError
from streamproc.video import open_video
from streamproc.video.pixels import Orientation

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
    """(pts, upright RGB) of each frame of a full decode in output order, damaged packets left out."""
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
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize("name", clips.CLIPS)
def test_wanted_frames_are_those_of_a_full_decode(name, folder):
    """Any subset of frames has the pixels that decoding everything gives, for each codec and container."""
    video = check_against_full_decode(clips.make(name, folder), seed=1)
    assert not video.fell_back


@pytest.mark.parametrize("name", SHARED_CODECS)
def test_shared_files_are_decoded_exactly(shared, name):
    """The same holds for files that other programs made."""
    path = shared / "data" / "codecs" / name
    if name in BROKEN_ON_PURPOSE:
        with pytest.raises(VideoError, match="moov"):
            open_video(path)
    else:
        check_against_full_decode(path, seed=2, rounds=4)


def test_no_shared_file_is_left_out(shared):
    assert {path.name for path in (shared / "data" / "codecs").iterdir()} == set(SHARED_CODECS)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["h264_open_gop", "hevc_open_gop", "vp9_alt_ref", "mpeg2", "av1"])
def test_thread_count_changes_no_pixel(name, threads, folder):
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
    """Packets before the first key frame, and leading pictures without their references, are no frames."""
    source = clips.make(name, folder)
    path = clips.cut(source, folder / f"late_{source.name}", keep_from=0.0)
    data = source.read_bytes()
    step = 2048 if path.suffix == ".mpg" else 188
    path.write_bytes(data[len(data) // 7 // step * step :])
    check_against_full_decode(path, seed=5)


def wanted_of(*frames):
    return np.array(frames, np.int64)


def read(video, *frames):
    return [frame.frame_index for frame in video.frames(wanted_of(*frames))]


def test_unneeded_groups_are_not_sent(folder):
    """One frame of a later group costs the packets from its key frame on, and no more."""
    with open_video(clips.make("h264_no_b", folder)) as video:
        assert read(video, 26) == [26]
        assert video.packets_sent == 3
        assert read(video, 26, 50) == [26, 50]
        assert video.packets_sent == 3 + 3 + 3


def test_frames_of_one_group_are_read_in_one_go(folder):
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
    with open_video(clips.make(name, folder)) as video:
        video.seek_gap_bytes = 0
        assert read(video, 50) == [50]
        assert video.seeks == 1
        assert not video.fell_back


def test_table_says_what_a_frame_costs(folder):
    """Leading pictures of an open group belong to the group before."""
    with open_video(clips.make("hevc_open_gop", folder)) as video:
        table = video.frame_table
        keys = sorted(set(table.start_order.tolist()))
        assert len(keys) == 5
        assert (table.start_order <= table.decode_order).all()
        for frame in range(len(table)):
            key_frame = int(np.flatnonzero(table.decode_order == table.start_order[frame])[0])
            assert table.pts_seconds[key_frame] <= table.pts_seconds[frame]


def test_refresh_without_key_frames_is_read_from_the_start(folder):
    """The container flags key frames where the encoder only refreshes gradually: they are not believed."""
    with open_video(clips.make("h264_intra_refresh", folder)) as video:
        assert set(video.frame_table.start_order.tolist()) == {0}


def test_output_order_counts_where_time_stamps_cannot(folder):
    """h264 in avi has times of the wrong order: frames are numbered as they come out."""
    with open_video(clips.make("h264_avi", folder)) as video:
        assert not video.frame_table.exact
        assert video.frame_count == 60
        assert (np.diff(video.frame_table.pts_seconds) != 0).all()


def test_frames_are_given_as_soon_as_they_are_decoded(folder):
    """Frame 0 is there before the file has been read."""
    with open_video(clips.make("h264_no_b", folder), decode_threads=1) as video:
        frames = video.frames(np.arange(60))
        assert next(frames).frame_index == 0
        assert video.packets_sent < 5
        assert [frame.frame_index for frame in frames] == list(range(1, 60))


def test_frames_outlive_their_video(folder):
    with open_video(clips.make("h264", folder)) as video:
        frame = next(video.frames(wanted_of(7)))
    assert frame.crop_rgb((0, 0, 4, 4)).shape == (4, 4, 3)
    assert repr(frame) == "Frame(7, 96x72, 0.280 s)"


@pytest.mark.parametrize("wanted", [[3, 3], [4, 2], [-1], [60]])
def test_wanted_must_ascend_within_the_video(wanted, folder):
    with open_video(clips.make("h264", folder)) as video, pytest.raises(ValueError, match="ascend"):
        video.frames(np.array(wanted))


def test_no_frames_wanted(folder):
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
    for suffix in ("mkv", "mp4"):
        path = clips.with_sound(clips.make("h264", folder), folder / f"sound.{suffix}", seconds=4.0)
        with open_video(path) as video:
            assert (video.frame_count, video.missing_frames, video.missing_seconds) == (60, 0, 0.0)
            assert read(video, 3, 59) == [3, 59]


@pytest.mark.parametrize(
    "name", ["h264", "hevc_open_gop", "vp9", "av1", "mpeg4_b", "mjpeg_avi", "h264_ts"]
)
def test_damage_in_the_middle_costs_only_its_frames(name, folder):
    """Every wanted frame comes or is listed as undecodable; frames of groups without damage are exact."""
    source = clips.make(name, folder)
    path = clips.damage(source, folder / f"damaged_{source.name}")
    with open_video(path) as video:
        came = read(video, *range(video.frame_count))
        assert sorted(came + video.undecodable) == list(range(video.frame_count))
        first_group = [f for f in range(10) if video.frame_table.start_order[f] == 0]
        expected = [pixels for _, pixels in reference(source)]
        assert wrong_frames(video, expected, first_group, np.random.default_rng(7)) == []


def test_frames_of_another_size_are_undecodable(folder):
    """Boxes refer to the first picture's size, so frames of another size are left out."""
    with open_video(clips.write_with_two_sizes(folder / "sizes.avi")) as video:
        assert (video.width, video.height, video.frame_count) == (96, 72, 20)
        assert read(video, 2, 9, 10, 15) == [2, 9]
        assert video.undecodable == [10, 15]


def test_file_that_changes_is_noticed(folder):
    path = clips.make("h264", folder).rename(folder / "changing.mp4")
    with open_video(path) as video:
        path.write_bytes(clips.make("h264_no_b", folder).read_bytes())
        with pytest.raises(VideoError, match="changed"):
            read(video, 40)


def test_seek_that_lands_elsewhere_is_not_believed(folder, monkeypatch):
    """Where the packets after a seek are not the indexed ones, the file is read from its start."""
    path = clips.make("h264", folder)
    expected = [pixels for _, pixels in reference(path)]
    with open_video(path) as video:
        video.seek_gap_bytes = 0
        monkeypatch.setattr("streamproc.video.index.PacketIndex.locate", lambda *_: None)
        assert wrong_frames(video, expected, [13, 50], np.random.default_rng(8)) == []
        assert video.seeks == 1


def test_wrong_landing_place_is_found_out_later(folder, monkeypatch):
    path = clips.make("h264", folder)
    expected = [pixels for _, pixels in reference(path)]
    with open_video(path) as video:
        video.seek_gap_bytes = 0
        monkeypatch.setattr("streamproc.video.index.PacketIndex.locate", lambda *_: 5)
        assert wrong_frames(video, expected, [13, 50], np.random.default_rng(9)) == []


def pretend_starts(video, every):
    """Let the index claim a start at each `every`-th packet."""
    starts, ordinals = video._known.timeline.starts, video._known.timeline.ordinals
    starts[:] = ordinals // every * every


@pytest.mark.parametrize("every", [1, 3, 6])
def test_starts_that_are_none_lead_back_to_the_beginning(every, folder):
    """Where the decoder gives nothing from a start, an earlier one is tried, then the beginning of the file."""
    path = clips.make("h264_one_gop", folder)
    expected = [pixels for _, pixels in reference(path)]
    with open_video(path) as video:
        pretend_starts(video, every)
        assert wrong_frames(video, expected, [20, 40, 55], np.random.default_rng(10)) == []
        assert video.fell_back
        assert video.undecodable == []
