"""Which crops are planned, how they are judged, and when a bucket is complete."""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamproc.crops import Buckets, CropOptions, PixelStore, cut_frames, plan_crops
from streamproc.crops.cutter import resized
from streamproc.crops.overlaps import find_overlaps
from streamproc.crops.pixel_store import CROP_BYTES
from streamproc.crops.plan import Plan, TrackSpan
from streamproc.crops.quality import SHARP_VARIANCE, placement_quality, sharpness, usable
from streamproc.crops.selection import EQUALLY_GOOD, choose_embedded
from streamproc.crops.trajectory import thinned
from streamproc.types import Crop, Cut, FrameTable, Track

SIZE = {"width": 640, "height": 480}


def table(frame_count, gop=10, *, disposable=False, exact=True) -> FrameTable:
    """A file in which decode order is presentation order.

    Every second picture can be disposable.
    """
    index = np.arange(frame_count)
    return FrameTable(
        pts_seconds=index / 25,
        start_order=index // gop * gop,
        decode_order=index,
        disposable=(index % gop % 2 == 1) if disposable else np.zeros(frame_count, bool),
        exact=exact,
    )


def track(person_id, frames, box=(100, 100, 150, 250), confidence=0.9):
    """A track of one person that has the same box in all frames."""
    k = len(frames)
    boxes = np.broadcast_to(np.array(box, np.float32), (k, 4)).copy()
    return Track(person_id, np.array(frames, np.int64), boxes, np.full(k, confidence, np.float32))


def plan(tracks, frames=300, gop=10, **options):
    """The plan of these tracks for a video of 640x480."""
    return plan_crops(tracks, table(frames, gop), **SIZE, options=CropOptions(**options))


def planned_crops(made, person_id):
    """The (frame, cut) pairs that are planned of one person, in the order of the frames."""
    found = []
    for frame, cuts in made.cuts.items():
        found += [(frame, cut) for cut in cuts if cut.person_id == person_id]
    return found


def planned_frames(made, person_id):
    """The frames in which one person is cut out."""
    return [frame for frame, _ in planned_crops(made, person_id)]


def test_each_person_gets_crops_spread_over_the_whole_track() -> None:
    """Each of 20 equal windows of a track gives one crop, in order."""
    made = plan([track(1, range(200))], crops_per_person=20)
    assert [cut.crop_index for _, cut in planned_crops(made, 1)] == list(range(20))
    for window, frame in enumerate(planned_frames(made, 1)):
        assert 10 * window <= frame < 10 * window + 10


def test_a_short_track_gives_all_its_boxes() -> None:
    """A track of fewer boxes than crops are wanted gives all of them."""
    made = plan([track(1, [3, 4, 5, 9, 11])])
    assert planned_frames(made, 1) == [3, 4, 5, 9, 11]


def test_frames_early_in_their_group_of_pictures_are_taken() -> None:
    """Windows that hold a key frame give only key frames, which cost the least to decode."""
    made = plan([track(1, range(300))], gop=10, crops_per_person=15)
    assert (made.frame_indices % 10 == 0).all()


def test_persons_share_frames_where_that_is_as_good() -> None:
    """Two persons together need fewer than 1.6 times the frames of one."""
    alone = plan([track(1, range(300))], gop=300, crops_per_person=10)
    both = plan(
        [track(1, range(300)), track(2, range(7, 287), (300, 100, 350, 250))],
        gop=300,
        crops_per_person=10,
    )
    assert len(both.frame_indices) < len(alone.frame_indices) * 1.6


def test_a_much_better_box_is_worth_its_cost() -> None:
    """Where the last frame of a window alone shows the person whole, it is taken."""
    one = track(1, range(100))
    one.boxes_xyxy[:, [0, 2]] = (-40, 10)
    one.boxes_xyxy[9::10, [0, 2]] = (100, 150)
    made = plan([one], crops_per_person=10)
    assert planned_frames(made, 1) == list(range(9, 100, 10))


def test_disposable_pictures_are_avoided() -> None:
    """Frames that no other frame needs are not planned where others are as good."""
    made = plan_crops(
        [track(1, range(300))],
        table(300, 300, disposable=True),
        **SIZE,
        options=CropOptions(crops_per_person=30),
    )
    assert (made.frame_indices % 2 == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.booleans())
def test_a_plan_equals_the_plain_loops(seed, count, gop, disposable) -> None:
    """The plan equals one made by plain loops over windows, candidates and costs."""
    rng = np.random.default_rng(seed)
    tracks = []
    for person in range(3):
        frames = np.sort(rng.choice(120, rng.integers(5, 60), replace=False))
        one = track(person, frames, confidence=1.0)
        one.boxes_xyxy[:] += rng.integers(-3, 3, (len(frames), 1)) * np.float32(60)
        tracks.append(one)
    frame_table = table(120, gop, disposable=disposable)
    made = plan_crops(tracks, frame_table, **SIZE, options=CropOptions(crops_per_person=count))
    hidden = find_overlaps(tracks).hidden
    windows = []
    for one, own in zip(tracks, hidden, strict=True):
        quality = placement_quality(one, own, **SIZE)
        rows = np.flatnonzero(usable(one.boxes_xyxy, **SIZE))
        parts = np.array_split(rows, min(count, rows.size)) if rows.size else []
        for crop_index, part in enumerate(parts):
            good = part[quality[part] >= EQUALLY_GOOD * quality[part].max()]
            nearest = good[np.argsort(np.abs(good - part[len(part) // 2]), kind="stable")]
            windows.append((len(nearest), part[0], one, crop_index, nearest))
    expected = {}
    chosen = set()
    reached = {}
    needed = ~frame_table.disposable
    for _, _, one, crop_index, nearest in sorted(windows, key=lambda window: window[:2]):
        costs = []
        for frame in one.frame_indices[nearest].tolist():
            start = int(frame_table.start_order[frame])
            depth = int(needed[start : frame + 1].sum())
            more = max(0, depth - reached.get(start, 0)) + int(frame_table.disposable[frame]) + 1
            costs.append((0 if frame in chosen else more, frame, start, depth))
        place = min(range(len(costs)), key=lambda i: costs[i][0])
        _, frame, start, depth = costs[place]
        chosen.add(frame)
        reached[start] = max(reached.get(start, 0), depth)
        expected[one.person_id, crop_index] = frame
    found = {}
    for person_id in range(3):
        for frame, cut in planned_crops(made, person_id):
            found[person_id, cut.crop_index] = frame
    assert found == expected


def test_short_tracks_and_those_not_among_the_top_are_skipped_with_the_reason() -> None:
    """A track that is too short or not among the longest is skipped with its reason."""
    made = plan([track(1, range(4)), track(2, range(50)), track(3, range(60))], top_persons=1)
    assert {s.person_id: s.reason for s in made.skipped} == {
        1: "4 boxes, fewer than the 5 asked for",
        2: "not among the 1 persons with the most frames",
    }
    assert list(made.tracks) == [3]


def test_a_person_with_no_usable_crop_is_skipped() -> None:
    """A person whose boxes all lie outside the picture is skipped with that reason."""
    made = plan([track(1, range(9), (638, 100, 700, 300)), track(2, range(9))])
    assert [(s.person_id, s.reason.split(":")[0]) for s in made.skipped] == [(1, "no usable crop")]


def test_no_tracks_give_an_empty_plan() -> None:
    """Without tracks no frame is planned and nobody is skipped."""
    made = plan([])
    assert (len(made.frame_indices), made.skipped) == (0, ())


def test_seen_with_needs_three_frames_apart() -> None:
    """Two persons rule each other out after three frames with separate boxes."""
    left, right = (0, 0, 50, 100), (200, 0, 250, 100)
    apart = find_overlaps(
        [track(7, [0, 1, 2], left), track(9, [0, 1, 2], right), track(8, [0, 1], (400, 0, 450, 99))]
    )
    assert apart.seen_with == {7: (9,), 9: (7,)}
    together = find_overlaps([track(1, range(9), left), track(2, range(9), (2, 2, 52, 102))])
    assert together.seen_with == {}, "two boxes on one person are no veto"


def test_hidden_is_the_share_that_another_box_covers_less_for_the_one_in_front() -> None:
    """The covered share of a box counts whole behind the other box, and half in front of it."""
    hidden = find_overlaps(
        [track(1, [0], (0, 0, 100, 100)), track(2, [0], (50, 0, 150, 120))]
    ).hidden
    assert hidden[0][0] == pytest.approx(0.5)
    assert hidden[1][0] == pytest.approx(0.5 * 100 * 50 / (100 * 120))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_overlaps_equal_the_plain_double_loop(seed, block) -> None:
    """Overlaps equal those of a plain double loop, whatever the size of a block."""
    rng = np.random.default_rng(seed)
    tracks = []
    for person_id in range(5):
        frames = np.sort(rng.choice(8, rng.integers(1, 8), replace=False))
        corner = rng.uniform(0, 60, (len(frames), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 60, (len(frames), 2))], 1).astype(
            np.float32
        )
        tracks.append(Track(person_id, frames, boxes, np.ones(len(frames), np.float32)))
    apart: dict[tuple[int, int], int] = {}
    hidden = [np.zeros(len(t)) for t in tracks]
    for a in tracks:
        for b in tracks:
            for i, frame in enumerate(a.frame_indices):
                for box in b.boxes_xyxy[b.frame_indices == frame] if b is not a else []:
                    mine, other = a.boxes_xyxy[i].astype(float), box.astype(float)
                    shared = np.prod(
                        (np.minimum(mine[2:], other[2:]) - np.maximum(mine[:2], other[:2])).clip(0)
                    )
                    areas = [np.prod(x[2:] - x[:2]) for x in (mine, other)]
                    apart[a.person_id, b.person_id] = apart.get((a.person_id, b.person_id), 0) + (
                        shared / (sum(areas) - shared) < 0.5
                    )
                    front = mine[3] > other[3]
                    hidden[a.person_id][i] = max(
                        hidden[a.person_id][i], shared / areas[0] * (0.5 if front else 1)
                    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamproc.crops.overlaps._BLOCK_BOXES", block)
        found = find_overlaps(tracks)
    for got, expected in zip(found.hidden, hidden, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert found.seen_with == {
        a: tuple(b for b in range(5) if apart.get((a, b), 0) >= 3)
        for a in range(5)
        if any(apart.get((a, b), 0) >= 3 for b in range(5))
    }


@pytest.mark.parametrize(
    "worse",
    [
        track(1, [0], (100, 100, 120, 160)),  # smaller
        track(1, [0], (-20, 100, 30, 250)),  # cut by the edge
        track(1, [0], (0, 100, 50, 250)),  # touches the edge
        track(1, [0], (100, 100, 350, 250)),  # not a person's shape
        track(1, [0], confidence=0.2),
    ],
)
def test_each_fault_lowers_the_quality(worse) -> None:
    """Each fault of a box lowers its quality, and a wholly hidden box has quality 0."""
    none = np.zeros(1, np.float32)
    good = placement_quality(track(1, [0]), none, **SIZE)[0]
    assert 0 <= placement_quality(worse, none, **SIZE)[0] < good <= 1
    assert placement_quality(track(1, [0]), np.ones(1, np.float32), **SIZE)[0] == 0


class PlainFrame:
    """A frame of given pixels, as `video.Frame` behaves."""

    def __init__(self, pixels, frame_index=0):
        self.pixels = pixels
        self.frame_index = frame_index
        self.pts_seconds = frame_index / 25
        self.height, self.width = pixels.shape[:2]

    def crop_rgb(self, box):
        """The pixels of a box that lies within the picture."""
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= self.width
        assert 0 <= y0 < y1 <= self.height
        return self.pixels[y0:y1, x0:x1]


def noise(height, width, seed=0):
    """A random picture (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "is_preselected", "shrunk"),
    [
        ((100.4, 99.6, 150.5, 250.2), True, False),
        ((100.4, 19.6, 300.5, 450.2), False, False),
        ((100.4, 19.6, 300.5, 450.2), True, True),
        ((100.4, 19.6, 350.5, 450.2), False, True),
    ],
)
def test_what_is_embedded_is_the_published_preprocessing_of_the_pixels_cut(
    box, is_preselected, shrunk
) -> None:
    """The network sees the crop as Pillow would resize it, however the crop is kept.

    A crop is kept as it is, unless it is large or will be embedded.
    """
    frame = PlainFrame(noise(480, 640))
    (cut,) = plan([track(1, range(5), box)]).cuts[0]
    cuts = {0: (replace(cut, is_preselected=is_preselected),)}
    ((crop,),) = cut_frames([frame], cuts, PixelStore(10**7))
    x0, y0, x1, y1 = int(box[0]), int(box[1]), int(box[2]) + 1, int(box[3]) + 1
    expected = Image.fromarray(frame.pixels[y0:y1, x0:x1]).resize(
        (128, 256), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(resized(crop.pixels), np.asarray(expected))
    assert crop.pixels.shape == ((256, 128, 3) if shrunk else (y1 - y0, x1 - x0, 3))
    assert crop.pixels.nbytes <= CROP_BYTES
    assert crop.aspect_ratio == (x1 - x0) / (y1 - y0)


@pytest.mark.parametrize("count", [5, 40, 200])
def test_of_equally_sharp_crops_the_preselected_ones_are_embedded(count) -> None:
    """Where sharpness is equal, the crops that the plan preselected are the embedded ones."""
    half_hidden = [track(1, range(count)), track(2, range(count // 2), (110, 120, 150, 260))]
    made = plan(half_hidden)
    for person in (1, 2):
        own = [cut for _, cut in planned_crops(made, person)]
        chosen = choose_embedded(crops_of([cut.placement_quality for cut in own]), 8)
        assert [cut.crop_index for cut in own if cut.is_preselected] == sorted(chosen)
        assert len(chosen) == min(8, len(own))


def test_boxes_partly_outside_are_cut_at_the_edge() -> None:
    """A box that reaches beyond the picture is cut at its edge."""
    made = plan([track(1, range(5), (-20, -10, 60, 120))])
    ((crop,),) = cut_frames([PlainFrame(noise(480, 640))], made.cuts, PixelStore(10**7))
    assert crop.aspect_ratio == 60 / 120


def test_a_blurred_crop_is_less_sharp() -> None:
    """Sharpness rises from a flat crop over a blurred one to noise, within 0 and 1."""
    sharp = noise(256, 128)
    soft = np.asarray(Image.fromarray(sharp).resize((16, 32)).resize((128, 256)))
    flat, of_soft, of_sharp = sharpness([np.full((256, 128, 3), 7, np.uint8), soft, sharp])
    assert 0 <= flat < of_soft < of_sharp < 1


@pytest.mark.parametrize(
    "size", [(90, 33), (256, 128), (400, 160), (3, 2), (96, 48), (1, 1)], ids=str
)
def test_sharpness_is_that_of_pillows_resize(size) -> None:
    """Sharpness is that of the crop as Pillow resizes it, within 0.008.

    Pillow rounds to whole numbers, which adds some variance of its own.
    """
    coarse = np.random.default_rng(3).integers(0, 256, (20, 10, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    green = Image.fromarray(pixels[..., 1]).resize((48, 96), Image.Resampling.BILINEAR)
    g = np.asarray(green).astype(int)
    laplacian = 4 * g[1:-1, 1:-1] - g[:-2, 1:-1] - g[2:, 1:-1] - g[1:-1, :-2] - g[1:-1, 2:]
    expected = laplacian.var() / (laplacian.var() + SHARP_VARIANCE)
    (of_one,) = sharpness([pixels])
    assert of_one == pytest.approx(expected, abs=0.008)
    other = noise(256, 128)
    np.testing.assert_allclose(
        sharpness([other, pixels]), [sharpness([other])[0], of_one], rtol=1e-6
    )


def test_no_crops_have_no_sharpness() -> None:
    """A frame without cuts gives an empty list of crops."""
    assert cut_frames([PlainFrame(noise(480, 640))], {0: ()}, PixelStore(10**7)) == [[]]


def test_each_frame_gets_its_own_crops_however_many_are_cut_at_once() -> None:
    """Frames cut together give the same crops as frames cut one by one."""
    boxes = [(20 * i, 10 * i, 40 + 21 * i, 90 + 12 * i) for i in range(15)]
    cuts = {
        frame: tuple(Cut(person, frame, boxes[person], 0.9, 0.5) for person in range(frame, 15))
        for frame in range(4)
    }
    frames = [PlainFrame(noise(480, 640, frame), frame) for frame in cuts]
    together = cut_frames(frames, cuts, PixelStore(10**8))
    assert [len(crops) for crops in together] == [15, 14, 13, 12]
    for frame, crops in zip(frames, together, strict=True):
        (alone,) = cut_frames([frame], cuts, PixelStore(10**8))
        for crop, cut, other in zip(crops, cuts[frame.frame_index], alone, strict=True):
            assert (crop.person_id, crop.frame_index, crop.box_xyxy) == (
                cut.person_id,
                frame.frame_index,
                cut.box_xyxy,
            )
            x0, y0, x1, y1 = cut.box_xyxy
            np.testing.assert_array_equal(crop.pixels, frame.pixels[y0:y1, x0:x1])
            assert crop.quality == pytest.approx(other.quality, abs=1e-4)


def crops_of(qualities):
    """Crops of one person with these qualities; their number is their crop index and frame."""
    pixels = np.zeros((1, 1, 3), np.uint8)
    return [
        Crop(1, number, number, 0.0, (0, 0, 1, 1), quality, 0.4, pixels)
        for number, quality in enumerate(qualities)
    ]


def test_embedded_crops_are_good_and_spread_in_time() -> None:
    """Eight good crops are chosen at least three apart, and bad ones only where none is left."""
    qualities = [0.5 + 0.01 * (i % 5) for i in range(40)]
    chosen = choose_embedded(crops_of(qualities), 8)
    assert len(chosen) == 8
    assert min(np.diff(sorted(chosen))) >= 3
    bad_half = [0.9] * 20 + [0.05] * 20
    assert sum(i < 20 for i in choose_embedded(crops_of(bad_half), 8)) >= 7, (
        "a hidden half is no reason for bad crops"
    )


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(0, 12))
def test_choice_is_unique_in_range_and_best_first(qualities, count) -> None:
    """As many different crops are chosen as can be, the best first."""
    chosen = choose_embedded(crops_of(qualities), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(qualities))
    assert all(qualities[a] >= qualities[b] for a, b in itertools.pairwise(chosen))


def test_a_bucket_is_complete_at_its_last_planned_frame_while_the_video_goes_on() -> None:
    """A bucket is complete with the last frame planned of its person, not at the video's end."""
    made = plan(
        [track(1, range(50)), track(2, range(300), (300, 100, 350, 250))], crops_per_person=5
    )
    buckets = Buckets(made, crops_embedded=3)
    frame = PlainFrame(noise(480, 640))
    store = PixelStore(10**8)
    complete = {}
    for index in made.frame_indices.tolist():
        frame.frame_index = index
        for bucket in buckets.add(index, *cut_frames([frame], made.cuts, store)):
            complete[bucket.person_id] = (index, len(bucket.crops), len(bucket.embedded))
    assert complete == {1: (made.last_frame[1], 5, 3), 2: (made.last_frame[2], 5, 3)}
    assert complete[1][0] < 50
    assert buckets.finish() == []


def test_frames_that_never_come_leave_a_smaller_bucket() -> None:
    """A bucket whose frames are missing is complete all the same."""
    made = plan(
        [track(1, range(50)), track(2, range(300), (300, 100, 350, 250))], crops_per_person=5
    )
    buckets = Buckets(made, crops_embedded=3)
    complete = []
    for index in made.frame_indices.tolist()[6:8]:
        complete += buckets.add(index, [])
    complete += buckets.finish()
    assert [bucket.person_id for bucket in complete] == [1, 2]


def one_person_plan(placed, *, every=1):
    """A plan of one person with crops of these placement qualities.

    One is cut in every `every`-th of the planned frames.
    """
    frames = np.arange(len(placed) * every)
    cuts = {
        crop_index * every: (Cut(1, crop_index, (0, 0, 1, 1), 0.9, quality),)
        for crop_index, quality in enumerate(placed)
    }
    last = (len(placed) - 1) * every
    trajectory = thinned(np.array([0, last + 1]), np.tile(np.float32([0, 0, 1, 1]), (2, 1)))
    span = TrackSpan(0, last, len(placed), trajectory)
    return Plan(frames, cuts, {1: span}, {1: last}, {1: len(placed)}, {}, ())


sixteenths = st.integers(0, 16).map(lambda n: n / 16)  # sums of these are exact


@given(st.lists(sixteenths, min_size=2, max_size=60), st.integers(1, 12), st.data())
def test_what_is_likely_is_what_is_chosen_where_sharpness_stays(placed, count, data) -> None:
    """At constant sharpness the crops foreseen are those of the final choice that exist so far."""
    so_far = data.draw(st.integers(1, len(placed) - 1))
    sharpness = data.draw(st.sampled_from([0.75, 0.875, 1.0]))
    buckets = Buckets(one_person_plan(placed), crops_embedded=count)
    crops = crops_of([sharpness * quality for quality in placed])
    if not any(placed[max(0, so_far - 3) : so_far]):
        return  # the latest crops have no quality, so their sharpness is unknown
    for crop in crops[:so_far]:
        assert buckets.add(crop.frame_index, [crop]) == []
    likely = list(buckets.likely(len(placed)))
    assert [crop.crop_index for crop in likely] == sorted(
        i for i in choose_embedded(crops, count) if i < so_far
    )
    assert all(any(crop is own for own in crops) for crop in likely)


@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_of_equal_crops_all_that_can_be_known_is_foreseen(planned, count, data) -> None:
    """Of equal crops those foreseen are the final choice as far as it has come."""
    so_far = data.draw(st.integers(1, planned - 1))
    buckets = Buckets(one_person_plan([0.8] * planned), crops_embedded=count)
    for crop in crops_of([0.7] * so_far):
        buckets.add(crop.frame_index, [crop])
    spread = np.linspace(0, planned - 1, count).round() if planned > count else np.arange(planned)
    assert [crop.crop_index for crop in buckets.likely(planned)] == [
        i for i in spread if i < so_far
    ]


@given(st.lists(st.integers(0, 199), min_size=1, unique=True), st.data())
def test_a_plan_knows_after_how_many_frames_buckets_are_full(frames, data) -> None:
    """`full_after` counts the planned frames up to each one that completes a bucket."""
    full = data.draw(st.lists(st.sampled_from(frames), max_size=5))
    made = replace(
        one_person_plan([0.5]),
        frame_indices=np.array(sorted(frames)),
        last_frame=dict(enumerate(full)),
    )
    assert made.full_after().tolist() == [
        count for count, frame in enumerate(sorted(frames), 1) if frame in full
    ]


def test_only_buckets_due_soon_are_looked_at_and_the_soonest_first() -> None:
    """Only persons who are complete within so many frames are foreseen, the soonest first."""
    made = plan(
        [track(1, range(50)), track(2, range(60), (300, 100, 350, 250)), track(3, range(300))],
        gop=1,
    )
    buckets = Buckets(made, crops_embedded=50)
    frame = PlainFrame(noise(480, 640))
    store = PixelStore(10**8)
    for index in made.frame_indices[made.frame_indices < 45].tolist():
        frame.frame_index = index
        buckets.add(index, *cut_frames([frame], made.cuts, store))
        assert made.last_frame[1] - index > 3 or list(buckets.likely(4))
    ahead = int(
        np.count_nonzero((made.frame_indices >= 45) & (made.frame_indices <= made.last_frame[1]))
    )
    assert list(buckets.likely(ahead - 1)) == []
    assert {crop.person_id for crop in buckets.likely(ahead)} == {1}
    order = [
        person
        for person, _ in itertools.groupby(buckets.likely(10**6), key=lambda crop: crop.person_id)
    ]
    assert order == [1, 2, 3]


def test_frames_that_never_came_are_not_expected_any_more() -> None:
    """Crops of frames that have passed without coming are not counted as still to come."""
    buckets = Buckets(one_person_plan([0.8] * 20), crops_embedded=8)
    crops = crops_of([0.7] * 20)[15:]  # the first 15 could not be decoded
    for crop in crops[:-1]:
        buckets.add(crop.frame_index, [crop])
    assert list(buckets.likely(20)) == crops[:-1], "with the last there are five, fewer than eight"
    assert list(Buckets(one_person_plan([0.8] * 20), crops_embedded=8).likely(20)) == []


def test_the_store_keeps_equal_pixels_within_its_budget_and_beyond() -> None:
    """Kept pixels equal the originals and are read-only, in the budget and beyond it."""
    originals = [noise(100 + 16 * seed, 200, seed) for seed in range(20)]  # 59 to 238 KiB
    store = PixelStore(sum(pixels.nbytes for pixels in originals[:3]))
    kept = [store.keep(pixels) for pixels in originals]
    assert store.spilled == 17
    for pixels, original in zip(kept, originals, strict=True):
        np.testing.assert_array_equal(pixels, original)
        with pytest.raises(ValueError, match="read-only"):
            pixels[0] = 0


def test_what_nobody_holds_makes_room_again() -> None:
    """Pixels that nobody refers to any more free their place in the store."""
    store = PixelStore(2 * noise(400, 200).nbytes)
    for seed in range(300):
        kept = [store.keep(noise(400, 200, seed + i)) for i in range(4)]
        np.testing.assert_array_equal(kept[3], noise(400, 200, seed + 3))
        del kept
        gc.collect(0)
    assert store._chunks == 1
    assert store._used_bytes == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_view_of_a_kept_crop_holds_its_place(in_memory) -> None:
    """As long as a view is there, no other crop takes the place, in the budget and beyond it."""
    first = noise(400, 200, 1)
    store = PixelStore(first.nbytes if in_memory else 1)
    view = store.keep(first.copy()).transpose(1, 0, 2)[::2]
    others = [store.keep(noise(400, 200, seed)) for seed in range(2, 5)]
    np.testing.assert_array_equal(view, first.transpose(1, 0, 2)[::2])
    assert store.spilled == (3 if in_memory else 4)
    del view, others
    gc.collect()
    store.keep(first.copy())
    assert store.spilled == (3 if in_memory else 5)


def crowd(frames: int, count: int, *, same_place: bool = False) -> list[Track]:
    """Return `count` tracks of people who all walk through the same frames of a wide picture."""
    rng = np.random.default_rng(5)
    tracks = []
    for person_id in range(count):
        size = np.array([40.0, 100.0]) if same_place else rng.uniform(20, 60) * np.array([1, 2.5])
        start = np.array([500.0, 500.0]) if same_place else rng.uniform(0, [1850, 900])
        steps = np.zeros((frames, 2)) if same_place else rng.normal(0, 1, (frames, 2))
        corners = start + np.cumsum(steps, axis=0)
        rows = np.concatenate([corners, corners + size], axis=1).astype(np.float32)
        tracks.append(Track(person_id, np.arange(frames), rows, np.ones(frames, np.float32)))
    return tracks


def test_a_crowd_is_compared_as_few_people_are(monkeypatch) -> None:
    """Looking only at boxes that may touch gives what looking at every pair gives."""
    tracks = crowd(8, 150)
    found = find_overlaps(tracks)
    monkeypatch.setattr("streamproc.crops.overlaps.CROWD_BOXES", 10_000)
    expected = find_overlaps(tracks)
    assert found.seen_with == expected.seen_with
    for got, wanted in zip(found.hidden, expected.hidden, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert any(shares.any() for shares in found.hidden)


def test_a_crowd_where_all_boxes_touch_is_not_judged() -> None:
    """Boxes that all lie on each other cost no time: nobody counts as apart, no box as hidden."""
    found = find_overlaps(crowd(4, 1_000, same_place=True))
    assert found.seen_with == {}
    assert not any(shares.any() for shares in found.hidden)


@pytest.mark.slow
def test_planning_does_not_grow_with_the_square_of_the_boxes_in_a_frame() -> None:
    """1,257 boxes in each of 200 frames are planned in seconds; all pairs would take a minute."""
    tracks = crowd(200, 1_257)
    began = time.process_time()
    made = plan_crops(tracks, table(200, 12), width=1920, height=1080, options=CropOptions())
    assert time.process_time() - began < 10
    assert len(made.seen_with) == 1_257
