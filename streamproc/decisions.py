"""What a reviewer decides, as events: one class a kind of decision.

Decisions name person keys, never a group alone, so that they hold whatever is proposed later. They
come in any order. Of what is said of a pair the latest holds, by `decided_at` and then
`decision_id`; `gallery.identities` makes identities of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from streamproc.errors import EventError
from streamproc.events import (
    Cosine,
    Event,
    Forgotten,
    GalleryExpired,
    Id,
    Label,
    PersonEmbedding,
    Share,
    Timestamp,
    VideoClosed,
    describe,
)
from streamproc.ids import hash_of

MAX_KEYS = 200
"""The most person keys in one list: a decision speaks of all their pairs."""

Verdict: TypeAlias = Literal["same", "different", "unsure"]
Keys = Annotated[list[Id], Field(min_length=1, max_length=MAX_KEYS)]
SeveralKeys = Annotated[list[Id], Field(min_length=2, max_length=MAX_KEYS)]


class Shown(BaseModel):
    """What the reviewer saw of a pair: to learn later how right the figures were."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    similarity: Cosine | None = None
    probability: Share | None = None
    candidate_id: Id | None = None


class Decision(Event):
    """What all kinds have in common. Topic `review-decisions`, from anyone.

    `decision_id` may be any id that is used once; absent, it is a hash of what is said.
    """

    topic: ClassVar[str] = "review-decisions"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = ("decision_id",)

    decision_id: Id = ""  # filled by the validator below: never empty
    gallery_id: Id
    decided_at: Timestamp
    decided_by: Label | None = None
    reason: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _id(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("decision_id"):
            return data
        left_out = {"decision_id", "event_id", "occurred_at", "producer", "schema_version"}
        said = {name: value for name, value in data.items() if name not in left_out}
        return data | {"decision_id": hash_of(cls.topic, said)}

    @property
    def order(self) -> tuple[float, str]:
        """What decides which of two decisions is the later one."""
        return datetime.fromisoformat(self.decided_at).timestamp(), self.decision_id


class PairDecision(Decision):
    """Two tracks are one person, or two people, or the reviewer cannot tell."""

    kind: Literal["pair"] = "pair"
    person_keys: tuple[Id, Id]
    verdict: Verdict
    shown: Shown | None = None

    @model_validator(mode="after")
    def _two(self) -> PairDecision:
        if self.person_keys[0] == self.person_keys[1]:
            raise ValueError("person_keys: expected two tracks, got one twice")
        return self


class GroupDecision(Decision):
    """All tracks of a list are one person."""

    kind: Literal["group"] = "group"
    person_keys: SeveralKeys


class ApartDecision(Decision):
    """No track of the one list is the same person as any of the other."""

    kind: Literal["apart"] = "apart"
    person_keys: Keys
    other_keys: Keys

    @model_validator(mode="after")
    def _disjoint(self) -> ApartDecision:
        both = set(self.person_keys) & set(self.other_keys)
        if both:
            raise ValueError(f"other_keys: {min(both)} is in both lists")
        return self


class VerifiedDecision(Decision):
    """Somebody has checked that these tracks, and no others, are one person."""

    kind: Literal["verified"] = "verified"
    person_keys: Keys


class SelectedDecision(Decision):
    """The people of these tracks are wanted in what is made of the gallery, or are not."""

    kind: Literal["selected"] = "selected"
    person_keys: Keys
    wanted: bool


class UndoDecision(Decision):
    """An earlier decision, which may be an undo, does not hold."""

    kind: Literal["undo"] = "undo"
    undoes: Id


AnyDecision: TypeAlias = (
    PairDecision
    | GroupDecision
    | ApartDecision
    | VerifiedDecision
    | SelectedDecision
    | UndoDecision
)
Decided = Annotated[AnyDecision, Field(discriminator="kind")]
"""What `review-decisions` and decisions.jsonl carry."""

_DECIDED: TypeAdapter[AnyDecision] = TypeAdapter(Decided)


def parse_decision(data: bytes) -> AnyDecision:
    """Parse one decision; raises EventError, which names the field, what was expected and came."""
    try:
        return _DECIDED.validate_json(data)
    except ValidationError as error:
        raise EventError(f"{Decision.topic}: {describe(error)}") from error


GalleryEvent: TypeAlias = PersonEmbedding | VideoClosed | GalleryExpired | Forgotten | AnyDecision
"""What a gallery takes: all that `person-embeddings` carries."""

_OF_GALLERY: TypeAdapter[GalleryEvent] = TypeAdapter(
    Annotated[GalleryEvent, Field(discriminator="kind")]
)


def parse_gallery_event(data: bytes) -> GalleryEvent:
    """Parse a value of `person-embeddings`; raises EventError as `parse_decision` does."""
    try:
        return _OF_GALLERY.validate_json(data)
    except ValidationError as error:
        raise EventError(f"{PersonEmbedding.topic}: {describe(error)}") from error
