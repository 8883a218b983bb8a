"""Who of a video was forgotten, as the services that keep files of it must know.

A run may be under way in another process while somebody is forgotten. So it looks here once its
files are written, and whoever forgets writes here before it looks for files: one of the two sees
the other.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from streamproc.errors import MachineError
from streamproc.storage.outputs import safe_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streamproc.storage.outputs import OutputStore

log = logging.getLogger(__name__)

PATTERN = "*/forgotten.json"
"""Where the marks of all videos are, below the place of the files."""
_EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Gone:
    """Whom a run must leave out: some of its persons, or `everybody`."""

    person_ids: frozenset[int] = field(default_factory=frozenset)
    everybody: bool = False

    def __bool__(self) -> bool:
        return self.everybody or bool(self.person_ids)


class Marks:
    """The marks beside the files of a store; safe in several threads of one process."""

    def __init__(self, files: OutputStore) -> None:
        self._files = files

    def add(self, video_id: str, person_ids: Collection[int] | None, at_ms: int) -> None:
        """Remember that persons, or all of them (None), were forgotten at a time.

        Raises MachineError if the disk or the store fails.
        """
        names = [_EVERYBODY] if person_ids is None else list(map(str, person_ids))
        known = dict(self._read(video_id))
        new = known | {name: max(at_ms, known.get(name, 0)) for name in names}
        if new != known:
            self._files.put(_place_of(video_id), orjson.dumps(new))

    def since(self, video_id: str, submitted_at_ms: int) -> Gone:
        """Return who was forgotten of a run that was submitted then; MachineError as `add`.

        Credentials that may write but not read are good practice: who has them sees no mark.
        """
        try:
            known = self._read(video_id)
        except MachineError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            log.warning("who was forgotten is not known: %s", error)
            return Gone()
        names = {name for name, at_ms in known.items() if at_ms >= submitted_at_ms}
        return Gone(frozenset(map(int, names - {_EVERYBODY})), _EVERYBODY in names)

    def _read(self, video_id: str) -> Mapping[str, int]:
        content = self._files.read(_place_of(video_id))
        found: Mapping[str, int] = {} if content is None else orjson.loads(content)
        return found


def _place_of(video_id: str) -> str:
    return f"{safe_name(video_id)}/forgotten.json"
