"""The assignment of one side to the other that costs least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lap
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamproc.types import Float64Array, Int64Array


def assign(costs: Int64Array | Float64Array) -> Mapping[int, int]:
    """Give each row (n) a column (m >= n) of its own, with the least sum of costs.

    This is Jonker and Volgenant's method (Computing 1987), as the library lap has it.
    """
    if not costs.size:
        return {}
    _, column_of, _ = lap.lapjv(costs.astype(np.float64), extend_cost=True)
    return dict(enumerate(column_of.tolist()))
