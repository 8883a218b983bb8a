"""How right the probabilities were by what reviewers decided.

Pure. A pair counts by its latest decision, with the probability that its reviewer was shown, or
else the one that the gallery has for it now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.decisions import PairDecision, UndoDecision
from streamproc.gallery.calibration.reliability import (
    Panel,
    calibration_error,
    diagram,
    equal_parts,
    error_if_perfect,
)
from streamproc.gallery.identities import pair_of, standing, statements_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from streamproc.decisions import AnyDecision
    from streamproc.gallery.identities import Pair


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One bin of probabilities: its least, its greatest and their mean, and what was decided.

    `same` is the share of its pairs that were called the same person, `error` how far that is from
    the mean.
    """

    least: float
    greatest: float
    mean: float
    pairs: int
    same: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """The decided pairs of a gallery: probability (p,) float64, and whether they are the same (p,).

    `unsure` pairs, those `without_probability` and `undone` decisions are not among them.
    """

    probability: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]
    unsure: int
    undone: int
    without_probability: int

    @property
    def rows(self) -> tuple[AuditRow, ...]:
        """The bins, the least likely first; of equally many pairs, none where there are none."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[AuditRow]:
        if not len(self.same):
            return
        for part in equal_parts(self.probability):
            own = self.probability[part]
            mean = float(own.mean())
            share = float(self.same[part].mean())
            least, greatest = float(own.min()), float(own.max())
            yield AuditRow(least, greatest, mean, len(part), share, abs(mean - share))

    @property
    def error(self) -> float | None:
        """The calibration error of all, None where there are no pairs."""
        return calibration_error(self.probability, self.same) if len(self.same) else None

    @property
    def error_by_chance(self) -> float | None:
        """What that error would be, by chance alone, were every probability exact."""
        if not len(self.same):
            return None
        return error_if_perfect(self.probability, np.random.default_rng(1))

    def as_json(self) -> dict[str, Any]:
        """Return all figures, as they are answered over HTTP and printed."""
        return {
            "pairs": len(self.same),
            "calibration_error": self.error,
            "error_by_chance": self.error_by_chance,
            "bins": [asdict(row) for row in self.rows],
            "left_out": {
                "unsure": self.unsure,
                "undone": self.undone,
                "without_probability": self.without_probability,
            },
        }

    def diagram(self) -> str:
        """Return the reliability diagram as SVG."""
        panel = Panel("as decided", self.same, [self.probability])
        return diagram([("What was said, and what was decided", [panel])], ["probability"])


def audit(decisions: Iterable[AnyDecision], probability_of: Mapping[Pair, float]) -> Audit:
    """Compare decisions with the probabilities that were shown.

    `probability_of` are those of the gallery now, for pairs with which none was shown. Only what
    reviewers said of a pair counts, themselves or of a group, and not what follows from it.
    """
    everything = list(decisions)
    held = standing(everything)
    chances = dict(probability_of)
    for decision in held:
        if isinstance(decision, PairDecision):
            shown = None if decision.shown is None else decision.shown.probability
            if shown is not None:
                chances[pair_of(*decision.person_keys)] = shown
    said = statements_of(held).of_pair
    verdicts = Counter(said.values())
    pairs = [pair for pair, verdict in said.items() if verdict != "unsure" and pair in chances]
    made = {one.decision_id for one in everything if not isinstance(one, UndoDecision)}
    return Audit(
        np.array([chances[pair] for pair in pairs], np.float64),
        np.array([said[pair] == "same" for pair in pairs], bool),
        unsure=verdicts["unsure"],
        undone=len(made - {one.decision_id for one in held}),
        without_probability=len(said) - verdicts["unsure"] - len(pairs),
    )
