"""What a gallery remembers: a row a person and a record a video; the similarity matrix is these rows.

The rows are the truth (a dict in replay, a Faust table in the stream); the arrays beside them are a
cache that `Gallery.write` keeps up and that can be rebuilt from the rows at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding, VideoClosed
    from streamproc.gallery.calibration.scorer import Judgement
    from streamproc.types import Float32Array

_FIRST_CAPACITY = 16
_FORESEEN_ROWS = 200  # fewer stay in the processor's cache from one event to the next

Order = tuple[float, str]
"""(`submitted_at` in seconds, `run_id`) of a run: of two runs of a video the greater one holds."""


def order_of(event: PersonEmbedding | VideoClosed) -> Order:
    """Which run an event is of, comparable."""
    return (datetime.fromisoformat(event.submitted_at).timestamp(), event.run_id)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A person similar enough to be a candidate, as of the run that it then belonged to, and how that was announced.

    One that is `held` is not announced, or was withdrawn: its `judgement` is not likely enough, so
    far.
    """

    similarity: float
    run_id: str
    state: Literal["proposed", "updated", "held"]
    judgement: Judgement | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One person: what was said of it, and its candidates among the persons that came before it.

    The row written last owns a pair: an entry counts while the neighbour still belongs to the run
    that it names.
    """

    person: PersonEmbedding
    neighbours: Mapping[str, Neighbour] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """The newest run of a video that was heard of, and its candidate count once it is closed."""

    order: Order
    closed: bool = False
    candidate_count: int = 0


@dataclass(frozen=True, slots=True)
class Writes:
    """What an event changes: rows by person key and videos by id; None removes."""

    rows: Mapping[str, Row | None] = field(default_factory=dict)
    videos: Mapping[str, VideoRecord | None] = field(default_factory=dict)


class _Block:
    """The vectors of all rows of the same weights: one array (capacity, dim), doubled when full."""

    def __init__(self, dim: int) -> None:
        self.vectors: Float32Array = np.zeros((_FIRST_CAPACITY, dim), np.float32)
        self.keys: list[str] = []
        self._position: dict[str, int] = {}
        self._foreseen: dict[bytes, Float32Array] = {}

    def foresee(self, vectors: Float32Array) -> None:
        """Compare vectors (q, dim) that will be asked for soon with all rows (n, dim) at once.

        One product reads the rows from memory once, not q times: with 10,000 rows that is most of
        the time.
        """
        cosines = (
            self.vectors[: len(self.keys)] @ vectors.T
        ).T  # (q, n); this way round, rows are packed once
        self._foreseen = {
            vector.tobytes(): row for vector, row in zip(vectors, cosines, strict=True)
        }

    def cosines(self, vector: Float32Array) -> Float32Array:
        """Cosines (n,) with all rows; those that were foreseen are completed with the rows added since."""
        rows = self.vectors[: len(self.keys)]
        known = self._foreseen.pop(vector.tobytes(), None) if self._foreseen else None
        result: Float32Array = (
            rows @ vector if known is None else np.concatenate([known, rows[len(known) :] @ vector])
        )
        return result

    def add(self, key: str, vector: Float32Array) -> None:
        if len(self.keys) == len(self.vectors):
            self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
        self.vectors[len(self.keys)] = vector
        self._position[key] = len(self.keys)
        self.keys.append(key)

    def remove(self, key: str) -> None:
        self._foreseen = {}  # rows change their places
        gap, last = self._position.pop(key), len(self.keys) - 1
        if gap != last:  # the last row moves into the gap
            self.vectors[gap], self.keys[gap] = self.vectors[last], self.keys[last]
            self._position[self.keys[gap]] = gap
        self.keys.pop()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Snapshot:
    """The vectors of some persons, copied: their similarities may be computed in any thread, while the gallery goes on.

    `groups`: for each weights, the positions (k,) of its persons and their vectors (k, dim)
    float32.
    """

    count: int
    groups: tuple[tuple[npt.NDArray[np.int64], Float32Array], ...]

    def __repr__(self) -> str:
        return f"Snapshot({self.count} persons of {len(self.groups)} weights)"

    def matrix(self) -> Float32Array:
        """Cosines (count, count) float32: symmetric, ones on the diagonal, NaN across different weights."""
        matrix = self.matrix_rows(0, self.count)
        return (matrix + matrix.T) * np.float32(0.5)

    def matrix_rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop` of the matrix, (stop - start, count) float32; symmetric to rounding only."""
        rows = np.full((stop - start, self.count), np.nan, np.float32)
        for members, vectors in self.groups:
            first, last = np.searchsorted(members, (start, stop))  # positions within a group ascend
            inside = slice(first, last)
            rows[np.ix_(members[inside] - start, members)] = (vectors[inside] @ vectors.T).clip(
                -1, 1
            )
        rows[np.arange(stop - start), np.arange(start, stop)] = 1.0
        return rows


class Gallery:
    """All rows of one gallery, with the arrays to compare against.

    Not safe for several threads at once.
    """

    def __init__(self, gallery_id: str, *, max_persons: int = 100_000) -> None:
        self.gallery_id = gallery_id
        self.max_persons = max_persons
        self.rows: dict[str, Row] = {}
        self.videos: dict[str, VideoRecord] = {}
        self._blocks: dict[str, _Block] = {}  # by weights_sha256
        self._named_by: dict[
            str, set[str]
        ] = {}  # person key to the keys of rows with it among their neighbours
        self._of_video: dict[str, set[str]] = {}

    def __repr__(self) -> str:
        return (
            f"Gallery({self.gallery_id!r}, {len(self.rows)} persons of {len(self.videos)} videos)"
        )

    def write(self, writes: Writes) -> None:
        """Carry out what `apply` returned."""
        for key, row in writes.rows.items():
            self._forget(key)
            if row is not None:
                self._remember(key, row)
        for video_id, record in writes.videos.items():
            if record is None:
                self.videos.pop(video_id, None)
            else:
                self.videos[video_id] = record

    def named_by(self, key: str) -> Iterable[str]:
        """Keys of the rows that have `key` among their neighbours."""
        return self._named_by.get(key, ())

    def of_video(self, video_id: str) -> Iterable[str]:
        """Keys of the rows of one video."""
        return self._of_video.get(video_id, ())

    def dim_of(self, weights_sha256: str) -> int | None:
        """The vectors' length under some weights, None before the first."""
        block = self._blocks.get(weights_sha256)
        return None if block is None else block.vectors.shape[1]

    def more_similar(
        self, vector: Float32Array, weights_sha256: str, least: float
    ) -> tuple[list[str], int]:
        """Keys of the rows of the same weights with a cosine above `least`, and how many rows are of other weights."""
        block = self._blocks.get(weights_sha256)
        if block is None:
            return [], len(self.rows)
        cosines = block.cosines(vector)
        return [block.keys[i] for i in np.flatnonzero(cosines > least).tolist()], len(
            self.rows
        ) - len(block.keys)

    def foresee(self, vectors: Float32Array, weights_sha256: str) -> None:
        """Prepare for `more_similar` of these vectors (q, dim), together; what it gives stays the same."""
        block = self._blocks.get(weights_sha256)
        if (
            block is not None
            and len(block.keys) >= _FORESEEN_ROWS
            and vectors.shape[1] == block.vectors.shape[1]
        ):
            block.foresee(vectors)

    def holds(self, key: str, neighbour: Neighbour) -> bool:
        """Whether a neighbour entry for `key` still counts."""
        row = self.rows.get(key)
        return row is not None and row.person.run_id == neighbour.run_id

    def pairs_of(self, key: str) -> dict[str, Neighbour]:
        """All standing candidates of one person, by the other's key, whichever row owns them."""
        return {
            other: entry for other, entry in self.similar_to(key).items() if entry.state != "held"
        }

    def similar_to(self, key: str) -> dict[str, Neighbour]:
        """All standing candidates of one person and the pairs that are held, by the other's key."""
        row = self.rows.get(key)
        if row is None:
            return {}
        owned_elsewhere = {other: self.rows[other].neighbours[key] for other in self.named_by(key)}
        pairs = {
            other: entry
            for other, entry in owned_elsewhere.items()
            if entry.run_id == row.person.run_id
        }
        return pairs | {
            other: entry for other, entry in row.neighbours.items() if self.holds(other, entry)
        }

    def pairs(self) -> Iterator[tuple[str, str, Neighbour]]:
        """All standing candidates, each pair once, the smaller key first."""
        for key in sorted(self.rows):
            for other, entry in sorted(self.pairs_of(key).items()):
                if key < other:
                    yield key, other, entry

    def matrix(self, keys: Iterable[str]) -> Float32Array:
        """Cosines (n, n) float32 of persons: symmetric, ones on the diagonal, NaN across different weights."""
        return self.snapshot(keys).matrix()

    def snapshot(self, keys: Iterable[str]) -> Snapshot:
        """Copy the vectors of persons, in their order."""
        persons = [self.rows[key].person for key in keys]
        groups: dict[str, list[int]] = {}
        for i, person in enumerate(persons):
            groups.setdefault(person.model.weights_sha256, []).append(i)
        return Snapshot(
            len(persons),
            tuple(
                (np.array(members), np.stack([persons[i].vector.numpy() for i in members]))
                for members in groups.values()
            ),
        )

    def _remember(self, key: str, row: Row) -> None:
        self.rows[key] = row
        self._of_video.setdefault(row.person.video_id, set()).add(key)
        for other in row.neighbours:
            self._named_by.setdefault(other, set()).add(key)
        vector = row.person.vector.numpy()
        self._blocks.setdefault(row.person.model.weights_sha256, _Block(len(vector))).add(
            key, vector
        )

    def _forget(self, key: str) -> None:
        row = self.rows.pop(key, None)
        if row is None:
            return
        self._of_video[row.person.video_id].discard(key)
        for other in row.neighbours:
            self._named_by[other].discard(key)
        self._blocks[row.person.model.weights_sha256].remove(key)
