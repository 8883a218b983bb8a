"""How well probabilities agree with the truth: log loss, calibration error, diagrams."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]
    BoolArray = npt.NDArray[np.bool_]

_LEAST_PROBABILITY = 1e-6  # a certainty that was wrong must not make the log loss infinite
_MOST_BINS = 10
_LEAST_IN_BIN = 5
_DRAWS = 200

# The diagrams, in pixels.
_COLOURS = ("#1b6ca8", "#d95f02")
_SIDE = 220  # of a panel
_GAP = 70  # between panels
_LEAST_WIDTH = 640
_LEGEND_WIDTH = 240
_TALLEST_BAR = 60
_HOW_TO_READ = "each point: equally many pairs; bars: how many lie there"


def log_losses(probability: Float64Array, same: BoolArray) -> Float64Array:
    """Return the log loss of each pair (p,) in nats: minus the log of the truth's probability."""
    of_truth = np.where(same, probability, 1 - probability)
    losses: Float64Array = -np.log(of_truth.clip(_LEAST_PROBABILITY, 1))
    return losses


def equal_parts(probability: Float64Array) -> list[npt.NDArray[np.int64]]:
    """Return the rows of bins of equally many pairs (p,), by rising probability; see `bins_of`."""
    order = np.argsort(probability, kind="stable")
    count = max(1, min(_MOST_BINS, len(order) // _LEAST_IN_BIN))
    return np.array_split(order, count)


def bins_of(probability: Float64Array, same: BoolArray) -> Iterator[tuple[float, float, int]]:
    """Yield mean probability, share of true pairs and count of bins of equally many pairs.

    There are at most 10 bins, with at least 5 pairs each.
    """
    for part in equal_parts(probability):
        yield float(probability[part].mean()), float(same[part].mean()), len(part)


def calibration_error(probability: Float64Array, same: BoolArray) -> float:
    """Return the expected calibration error over bins of equally many pairs.

    After Naeini et al. (2015), with the bins of Nguyen and O'Connor (2015).
    """
    bins = bins_of(probability, same)
    return sum(abs(mean - share) * count for mean, share, count in bins) / len(probability)


def swept_error(probability: Float64Array, same: BoolArray) -> float:
    """Return the calibration error with as many bins as keep the share of true pairs rising.

    With few pairs chance alone adds less to it than to the error over a fixed number of bins
    (Roelofs et al. 2022).
    """
    order = np.argsort(probability, kind="stable")
    error = 0.0
    for count in range(1, len(order) + 1):
        parts = np.array_split(order, count)
        shares = np.array([same[part].mean() for part in parts])
        if (np.diff(shares) < 0).any():
            break
        means = np.array([probability[part].mean() for part in parts])
        sizes = np.array([len(part) for part in parts])
        error = float(np.abs(means - shares) @ sizes / len(order))
    return error


def error_if_perfect(probability: Float64Array, rng: np.random.Generator) -> float:
    """Return the calibration error that chance alone gives, were every probability exact."""
    errors = []
    for _ in range(_DRAWS):
        same = rng.random(len(probability)) < probability
        errors.append(calibration_error(probability, same))
    return float(np.mean(errors))


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One diagram: whether pairs are one person (p,), and one or two kinds of probability (p,)."""

    title: str
    same: BoolArray
    probabilities: Sequence[Float64Array]


def diagram(rows: Sequence[tuple[str, Sequence[Panel]]], legend: Sequence[str]) -> str:
    """Return reliability diagrams as SVG, a row of panels under each title.

    `legend` names the panels' kinds of probability. The bars show how many pairs have a probability
    of the first kind in each tenth.
    """
    columns = max(len(panels) for _, panels in rows)
    width = max(_GAP + columns * (_SIDE + _GAP), _LEAST_WIDTH)
    height = _GAP + len(rows) * (_SIDE + _GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        "<style>text { font: 12px sans-serif } .count { font-size: 8px; fill: #777 }</style>",
        f'<g transform="translate({_GAP} 20)">',
        *(
            f'<text x="{_LEGEND_WIDTH * i}" fill="{_COLOURS[i]}">● {escape(text)}</text>'
            for i, text in enumerate(legend)
        ),
        "</g>",
        f'<text class="count" x="{_GAP}" y="34">{_HOW_TO_READ}</text>',
    ]
    for row, (title, panels) in enumerate(rows):
        y = _GAP + row * (_SIDE + _GAP)
        for column, panel in enumerate(panels):
            x = _GAP + column * (_SIDE + _GAP)
            out.append(f'<g transform="translate({x} {y})">')
            out.append(f'<text y="-20">{escape(title)}</text>')
            out += _plot(panel)
            out.append("</g>")
    out.append("</svg>\n")
    return "\n".join(out)


def _plot(panel: Panel) -> Iterator[str]:
    side = _SIDE
    below = side + 14
    middle = side / 2
    yield f'<rect width="{side}" height="{side}" fill="none" stroke="#999"/>'
    yield (
        f'<path d="M0 {side}L{side} 0" stroke="#bbb"/>'
        f'<text y="-6">{escape(panel.title)}, {len(panel.same)} pairs</text>'
    )
    yield f'<text x="{middle}" y="{side + 28}" text-anchor="middle">probability</text>'
    yield (
        f'<text transform="translate(-8 {middle}) rotate(-90)" text-anchor="middle">'
        "share of one person</text>"
    )
    yield f'<text y="{below}">0</text><text x="{side}" y="{below}" text-anchor="end">1</text>'
    yield from _bars(panel.probabilities[0])
    # The first kind is drawn last, above the other.
    for probability, colour in reversed(list(zip(panel.probabilities, _COLOURS, strict=False))):
        yield from _points(probability, panel.same, colour)


def _points(probability: Float64Array, same: BoolArray, colour: str) -> Iterator[str]:
    points = [
        (round(_SIDE * mean, 1), round(_SIDE * (1 - share), 1), count)
        for mean, share, count in bins_of(probability, same)
    ]
    line = " ".join(f"{x},{y}" for x, y, _ in points)
    yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for x, y, count in points:
        yield (
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}">'
            f"<title>{count} pairs</title></circle>"
        )


def _bars(probability: Float64Array) -> Iterator[str]:
    counts = np.histogram(probability, bins=_MOST_BINS, range=(0, 1))[0].tolist()
    width = _SIDE / _MOST_BINS
    for i, count in enumerate(counts):
        if count:
            height = round(_TALLEST_BAR * count / max(counts), 1)
            yield (
                f'<rect x="{i * width}" y="{_SIDE - height}" width="{width}" height="{height}" '
                'fill="#eee"/>'
            )
            yield (
                f'<text class="count" x="{(i + 0.5) * width}" y="{_SIDE - 2}" '
                f'text-anchor="middle">{count}</text>'
            )
