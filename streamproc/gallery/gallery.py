"""What a gallery remembers: a row for each tracklet and a record for each video.

The rows are the truth: a dict in replay, entries of a Faust table in the stream. The arrays beside
them are a cache, which `Gallery.write` keeps up to date and which can be rebuilt from the rows at
any time. The similarity matrix of a gallery is computed from its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.identities import pair_of
from streamproc.gallery.pairs import group_ids_of
from streamproc.gallery.reviewed import Reviewed, Said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding, VideoClosed
    from streamproc.gallery.calibration.scorer import Calibration
    from streamproc.gallery.carry_over import Place
    from streamproc.gallery.identities import Pair
    from streamproc.gallery.pairs import Candidate, Group
    from streamproc.gallery.reviewed import Kept
    from streamproc.types import Float32Array

_FIRST_CAPACITY = 16
_ROWS_AT_ONCE = 128
_LEAST_ROWS_TO_PRECOMPUTE = 200  # fewer stay in the processor's cache from event to event

Order = tuple[float, str]
"""(`submitted_at` in seconds, `run_id`) of a run, which name it among the runs of a video."""


def order_of(event: PersonEmbedding | VideoClosed) -> Order:
    """Return which run an event is of."""
    return (datetime.fromisoformat(event.submitted_at).timestamp(), event.run_id)


def started_seconds_of(event: PersonEmbedding | VideoClosed) -> float:
    """Return when an event's run was begun, 0 where the event does not say."""
    started_at = event.started_at
    return 0.0 if started_at is None else datetime.fromisoformat(started_at).timestamp()


@dataclass(frozen=True, slots=True)
class Row:
    """One tracklet, and its candidates among the tracklets that came before it, by their keys.

    A pair is kept in the row that was written last. A candidate counts while the other tracklet
    still belongs to the run that the candidate names (`Gallery.is_current`).
    """

    tracklet: PersonEmbedding
    candidates: Mapping[str, Candidate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """The newest known run of a video, and its number of candidates once it is closed.

    A run that was begun again after a crash is the same run: `started_seconds` is of the last time.
    """

    order: Order
    closed: bool = False
    candidate_count: int = 0
    started_seconds: float = 0.0

    @classmethod
    def of(
        cls, event: PersonEmbedding | VideoClosed, *, closed: bool = False, candidate_count: int = 0
    ) -> VideoRecord:
        """Return the record of an event's run."""
        return cls(order_of(event), closed, candidate_count, started_seconds_of(event))

    def is_newer_than(self, event: PersonEmbedding | VideoClosed) -> bool:
        """Return whether an event is of an older run.

        Of two runs the one submitted later counts, and of two of one submission the one begun
        later; their ids decide where that is not known.
        """
        if self.order == order_of(event):
            return False
        submitted, run_id = self.order
        event_submitted, event_run_id = order_of(event)
        mine = (submitted, self.started_seconds, run_id)
        return mine > (event_submitted, started_seconds_of(event), event_run_id)


@dataclass(frozen=True, slots=True)
class Settled:
    """That all pairs of closed videos are as a closing leaves them; kept in memory only.

    `calibration` is what judged them. `to_judge_again` are the videos that have pairs which it
    could not judge: the next closing tries again.
    """

    calibration: Calibration
    to_judge_again: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Writes:
    """What an event changes; None removes.

    Rows by person key, records by video id, groups by their ids, decisions by theirs. `places` say
    where those were whom decisions name, by person key. `forgotten` says when somebody was
    forgotten, see `forgetting`. `reviewed` is what follows from the decisions once all this is
    written; absent, `Gallery` finds it out where it must. `settled` is what a closing says.
    """

    rows: Mapping[str, Row | None] = field(default_factory=dict)
    videos: Mapping[str, VideoRecord | None] = field(default_factory=dict)
    groups: Mapping[str, Group | None] = field(default_factory=dict)
    decisions: Mapping[str, Kept | None] = field(default_factory=dict)
    places: Mapping[str, Place | None] = field(default_factory=dict)
    forgotten: Mapping[str, float | None] = field(default_factory=dict)
    reviewed: Reviewed | None = None
    settled: Settled | None = None


class _Block:
    """The vectors of all rows of the same weights: one array (capacity, dim), doubled when full."""

    def __init__(self, dim: int) -> None:
        self.vectors: Float32Array = np.zeros((_FIRST_CAPACITY, dim), np.float32)
        self.keys: list[str] = []
        self._index: dict[str, int] = {}
        self._precomputed: dict[bytes, Float32Array] = {}

    def precompute(self, vectors: Float32Array) -> None:
        """Compare vectors (q, dim) that will be asked for soon with all rows (n, dim) at once.

        One matrix product reads the rows from memory once, not q times: with 10,000 rows that is
        most of the time.
        """
        # rows @ vectors.T and not the reverse, so that BLAS packs the rows only once.
        cosines = (self.vectors[: len(self.keys)] @ vectors.T).T  # (q, n)
        self._precomputed = {
            vector.tobytes(): row for vector, row in zip(vectors, cosines, strict=True)
        }

    def cosines(self, vector: Float32Array) -> Float32Array:
        """Return the cosines (n,) with all rows, taking those that were precomputed."""
        rows = self.vectors[: len(self.keys)]
        known = self._precomputed.pop(vector.tobytes(), None) if self._precomputed else None
        if known is None:
            return rows @ vector
        # Rows were only added since: `remove` forgets what was precomputed.
        return np.concatenate([known, rows[len(known) :] @ vector])

    def select(self, keys: Sequence[str]) -> Float32Array:
        """Return the vectors (k, dim) of some rows."""
        return self.vectors[[self._index[key] for key in keys]]

    def add(self, key: str, vector: Float32Array) -> None:
        if len(self.keys) == len(self.vectors):
            self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
        self.vectors[len(self.keys)] = vector
        self._index[key] = len(self.keys)
        self.keys.append(key)

    def remove(self, key: str) -> None:
        self._precomputed = {}  # rows change their places
        gap = self._index.pop(key)
        last = len(self.keys) - 1
        if gap != last:  # the last row moves into the gap
            self.vectors[gap] = self.vectors[last]
            self.keys[gap] = self.keys[last]
            self._index[self.keys[gap]] = gap
        self.keys.pop()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Snapshot:
    """The vectors of some tracklets, copied.

    Any thread may compute similarities of it while the gallery changes. `groups` has, for each
    weights, the positions (k,) int64 of its tracklets, ascending, and their vectors (k, dim)
    float32.
    """

    count: int
    groups: tuple[tuple[npt.NDArray[np.int64], Float32Array], ...]

    def __repr__(self) -> str:
        return f"Snapshot({self.count} tracklets of {len(self.groups)} weights)"

    def matrix(self) -> Float32Array:
        """Return cosines (count, count) float32: symmetric, ones on the diagonal.

        Tracklets of different weights have NaN.
        """
        matrix = self.matrix_rows(0, self.count)
        return (matrix + matrix.T) * np.float32(0.5)

    def matrix_rows(self, start: int, stop: int) -> Float32Array:
        """Return rows `start` to `stop` of the matrix, (stop - start, count) float32.

        They are symmetric up to rounding only.
        """
        rows = np.full((stop - start, self.count), np.nan, np.float32)
        for positions, vectors in self.groups:
            first, last = np.searchsorted(positions, (start, stop))
            wanted = slice(first, last)
            cosines = vectors[wanted] @ vectors.T
            rows[np.ix_(positions[wanted] - start, positions)] = cosines.clip(-1, 1)
        rows[np.arange(stop - start), np.arange(start, stop)] = 1.0
        return rows


class Gallery:
    """All rows of one gallery, with the arrays that new vectors are compared with.

    Not safe for several threads at once.
    """

    def __init__(self, gallery_id: str, *, max_persons: int = 100_000) -> None:
        self.gallery_id = gallery_id
        self.max_persons = max_persons
        self.rows: dict[str, Row] = {}
        self.videos: dict[str, VideoRecord] = {}
        self.groups: dict[str, Group] = {}
        self.group_ids: dict[str, str] = {}  # by person key: the group that it is in
        self.decisions: dict[str, Kept] = {}
        self.places: dict[str, Place] = {}
        self.forgotten: dict[str, float] = {}  # by a hash of whom: until when, in seconds
        self._reviewed: Reviewed | None = None
        self._blocks: dict[str, _Block] = {}  # by weights_sha256
        self._keys_of_video: dict[str, set[str]] = {}
        # By person key: the keys of the rows that have it among their candidates.
        self._rows_with_candidate: dict[str, set[str]] = {}
        self._settled: Settled | None = None
        # Tracklets of closed videos whose pairs have come or gone since the last closing.
        self.changed: set[str] = set()

    def __repr__(self) -> str:
        sizes = f"{len(self.rows)} tracklets of {len(self.videos)} videos"
        return f"Gallery({self.gallery_id!r}, {sizes})"

    def write(self, writes: Writes) -> None:
        """Carry out what `apply` returned."""
        if writes.settled is None and self._settled is not None:
            self._note_changes(writes)
        for key, row in writes.rows.items():
            old = self.rows.get(key)
            if row is not None and old is not None and row.tracklet is old.tracklet:
                self._change_candidates(key, old, row)
                continue
            self._remove_row(key)
            if row is not None:
                self._add_row(key, row)
        for video_id, record in writes.videos.items():
            if record is None:
                self.videos.pop(video_id, None)
            else:
                self.videos[video_id] = record
        self._write_groups(writes.groups)
        self._write_decisions(writes)
        for mark, seconds in writes.forgotten.items():
            if seconds is None:
                self.forgotten.pop(mark, None)
            else:
                self.forgotten[mark] = max(seconds, self.forgotten.get(mark, seconds))
        if writes.settled is not None:
            self._settled = writes.settled
            self.changed = set()

    @property
    def reviewed(self) -> Reviewed:
        """What follows from the decisions."""
        if self._reviewed is None:
            self._reviewed = self.reviewed_after(Writes(), Said.by(self.decisions.values()))
        return self._reviewed

    def reviewed_after(self, writes: Writes, said: Said) -> Reviewed:
        """Return what follows from decisions, once what is written to the rows is."""
        present = {key for key in said.named if self._row_after(writes, key) is not None}
        return Reviewed(self.gallery_id, said, present, self._vetoes_among(writes, present))

    def _row_after(self, writes: Writes, key: str) -> Row | None:
        return writes.rows[key] if key in writes.rows else self.rows.get(key)

    def _vetoes_among(self, writes: Writes, keys: Iterable[str]) -> set[Pair]:
        """Return the pairs of these tracks that were seen apart in the same frames."""
        wanted = set(keys)
        found: set[Pair] = set()
        for key in wanted:
            row = self._row_after(writes, key)
            assert row is not None
            for other in row.tracklet.keys_seen_apart:
                if other in wanted and other != key:
                    found.add(pair_of(key, other))
        return found

    def _write_decisions(self, writes: Writes) -> None:
        for decision_id, kept in writes.decisions.items():
            if kept is None:
                self.decisions.pop(decision_id, None)
            else:
                self.decisions[decision_id] = kept
        for key, place in writes.places.items():
            if place is None:
                self.places.pop(key, None)
            else:
                self.places[key] = place
        if writes.reviewed is not None:
            self._reviewed = writes.reviewed
        elif self._reviewed is not None and (
            writes.decisions or not self._reviewed.said.named.isdisjoint(writes.rows)
        ):
            self._reviewed = None

    def settled_by(self, calibration: Calibration) -> Settled | None:
        """Return what the closings so far have settled.

        None where a closing has to look at everything: before the first one since the rows were
        read, and where another calibration judged.
        """
        settled = self._settled
        return settled if settled is not None and settled.calibration is calibration else None

    def _note_changes(self, writes: Writes) -> None:
        """Remember whose pairs of closed videos come or go with what is written."""
        changed: set[str] = set()
        for video_id, record in writes.videos.items():
            was_closed = self._is_closed(video_id)
            if record is None or (record.closed and not was_closed):
                self._settled = None  # not by an event: the next closing looks at everything
                self.changed = set()
                return
            if was_closed and not record.closed:
                changed |= self._with_neighbours(self.keys_of_video(video_id))
        for key, new in writes.rows.items():
            row = new or self.rows.get(key)
            if row is not None and self._is_closed(row.tracklet.video_id):
                changed |= self._with_neighbours([key])
                changed |= row.candidates.keys()
        self.changed |= changed

    def _with_neighbours(self, keys: Iterable[str]) -> set[str]:
        found = set(keys)
        for key in list(found):
            found |= self.candidates_of(key, with_suppressed=True).keys()
        return found

    def _is_closed(self, video_id: str) -> bool:
        record = self.videos.get(video_id)
        return record is not None and record.closed

    def _write_groups(self, groups: Mapping[str, Group | None]) -> None:
        for group_id in groups:
            old = self.groups.pop(group_id, None)
            for key in () if old is None else old.person_keys:
                self.group_ids.pop(key, None)
        new = {group_id: group for group_id, group in groups.items() if group is not None}
        self.groups |= new
        self.group_ids |= group_ids_of(new)

    def keys_of_video(self, video_id: str) -> Iterable[str]:
        """Return the keys of the rows of one video."""
        return self._keys_of_video.get(video_id, ())

    def rows_with(self, key: str) -> Iterable[str]:
        """Return the keys of the rows that keep a candidate with a tracklet, current or not."""
        return self._rows_with_candidate.get(key, ())

    @property
    def weights(self) -> KeysView[str]:
        """The `weights_sha256` of all rows."""
        return self._blocks.keys()

    def dim_of(self, weights_sha256: str) -> int | None:
        """Return the length of vectors of some weights, None before the first."""
        block = self._blocks.get(weights_sha256)
        return None if block is None else block.vectors.shape[1]

    def more_similar(
        self, vector: Float32Array, weights_sha256: str, least: float
    ) -> tuple[list[str], int]:
        """Return the keys of the rows of the same weights whose cosine is above `least`.

        The second value is how many rows are of other weights, so were not compared.
        """
        block = self._blocks.get(weights_sha256)
        if block is None:
            return [], len(self.rows)
        above = np.flatnonzero(block.cosines(vector) > least)
        keys = [block.keys[i] for i in above.tolist()]
        return keys, len(self.rows) - len(block.keys)

    def precompute(self, vectors: Float32Array, weights_sha256: str) -> None:
        """Compare vectors (q, dim) that `more_similar` will be asked for, all at once.

        It only makes `more_similar` faster: what that returns stays the same.
        """
        block = self._blocks.get(weights_sha256)
        if block is None or len(block.keys) < _LEAST_ROWS_TO_PRECOMPUTE:
            return
        if vectors.shape[1] == block.vectors.shape[1]:
            block.precompute(vectors)

    def all_similar(
        self, keys: Sequence[str], weights_sha256: str, least: float
    ) -> Iterator[tuple[str, list[str]]]:
        """Yield for each of `keys`, tracklets of these weights, whose cosine is above `least`.

        Each is among its own. Many are compared in one product.
        """
        block = self._blocks[weights_sha256]
        rows = block.vectors[: len(block.keys)]
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            chunk = keys[start : start + _ROWS_AT_ONCE]
            is_above = block.select(chunk) @ rows.T > least  # (chunk, rows)
            for key, row in zip(chunk, is_above, strict=True):
                yield key, [block.keys[i] for i in np.flatnonzero(row).tolist()]

    def is_current(self, key: str, candidate: Candidate) -> bool:
        """Return whether `key` still belongs to the run that a candidate names."""
        row = self.rows.get(key)
        return row is not None and row.tracklet.run_id == candidate.run_id

    def candidates_of(self, key: str, *, with_suppressed: bool = False) -> dict[str, Candidate]:
        """Return the candidates of one tracklet by the other's key, whichever row keeps them."""
        row = self.rows.get(key)
        if row is None:
            return {}
        in_own_row = {
            other: candidate
            for other, candidate in row.candidates.items()
            if self.is_current(other, candidate)
        }
        in_other_rows: dict[str, Candidate] = {}
        for other in self._rows_with_candidate.get(key, ()):
            candidate = self.rows[other].candidates[key]
            if candidate.run_id == row.tracklet.run_id:
                in_other_rows[other] = candidate
        found = in_other_rows | in_own_row
        if with_suppressed:
            return found
        return {other: entry for other, entry in found.items() if not entry.is_suppressed}

    def candidates(self) -> Iterator[tuple[str, str, Candidate]]:
        """Yield all pairs that are not suppressed, sorted, each once with the smaller key first."""
        for key in sorted(self.rows):
            for other, candidate in sorted(self.candidates_of(key).items()):
                if key < other:
                    yield key, other, candidate

    def matrix(self, keys: Iterable[str]) -> Float32Array:
        """Return the cosines (n, n) float32 of tracklets; see `Snapshot.matrix`."""
        return self.snapshot(keys).matrix()

    def snapshot(self, keys: Iterable[str]) -> Snapshot:
        """Copy the vectors of tracklets, in their order."""
        tracklets = [self.rows[key].tracklet for key in keys]
        positions: dict[str, list[int]] = {}  # by weights
        for position, tracklet in enumerate(tracklets):
            positions.setdefault(tracklet.model.weights_sha256, []).append(position)
        groups = []
        for own in positions.values():
            vectors = np.stack([tracklets[i].vector.numpy() for i in own])
            groups.append((np.array(own), vectors))
        return Snapshot(len(tracklets), tuple(groups))

    def _add_row(self, key: str, row: Row) -> None:
        tracklet = row.tracklet
        self.rows[key] = row
        self._keys_of_video.setdefault(tracklet.video_id, set()).add(key)
        for other in row.candidates:
            self._rows_with_candidate.setdefault(other, set()).add(key)
        vector = tracklet.vector.numpy()
        block = self._blocks.setdefault(tracklet.model.weights_sha256, _Block(len(vector)))
        block.add(key, vector)

    def _change_candidates(self, key: str, old: Row, new: Row) -> None:
        """Write a row of a tracklet that stays the same, as a closing does with many."""
        for other in old.candidates.keys() - new.candidates.keys():
            _take_from(self._rows_with_candidate, other, key)
        for other in new.candidates.keys() - old.candidates.keys():
            self._rows_with_candidate.setdefault(other, set()).add(key)
        self.rows[key] = new

    def _remove_row(self, key: str) -> None:
        row = self.rows.pop(key, None)
        if row is None:
            return
        _take_from(self._keys_of_video, row.tracklet.video_id, key)
        for other in row.candidates:
            _take_from(self._rows_with_candidate, other, key)
        self._blocks[row.tracklet.model.weights_sha256].remove(key)


def _take_from(index: dict[str, set[str]], name: str, key: str) -> None:
    """Remove a key from the set of that name, and the set once it is empty."""
    index[name].discard(key)
    if not index[name]:
        del index[name]
