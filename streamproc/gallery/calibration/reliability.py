"""How right probabilities are: log loss, expected calibration error, and reliability diagrams as SVG."""

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

_LEAST_CHANCE = 1e-6  # a certainty that was wrong must not make the log loss infinite
_MOST_BINS, _LEAST_IN_BIN = 10, 5
_DRAWS = 200
_COLOURS = ("#1b6ca8", "#d95f02")
_SIDE, _GAP = 220, 70  # of a panel, between panels
_TALLEST_BAR = 60


def log_losses(chance: Float64Array, same: BoolArray) -> Float64Array:
    """Of each pair (p,), in nats: minus the log of the probability that was given to what is so."""
    given = np.where(same, chance, 1 - chance)
    losses: Float64Array = -np.log(given.clip(_LEAST_CHANCE, 1))
    return losses


def bins_of(chance: Float64Array, same: BoolArray) -> Iterator[tuple[float, float, int]]:
    """Mean probability, share of right ones and count of up to 10 equally large bins of at least 5 pairs."""
    order = np.argsort(chance, kind="stable")
    for part in np.array_split(order, max(1, min(_MOST_BINS, len(order) // _LEAST_IN_BIN))):
        yield float(chance[part].mean()), float(same[part].mean()), len(part)


def calibration_error(chance: Float64Array, same: BoolArray) -> float:
    """Expected calibration error with equal-count bins.

    Nguyen and O'Connor 2015; Naeini et al. 2015.
    """
    return sum(abs(mean - share) * count for mean, share, count in bins_of(chance, same)) / len(
        chance
    )


def swept_error(chance: Float64Array, same: BoolArray) -> float:
    """The error with as many bins as leave the share of right ones rising from bin to bin (Roelofs et al. 2022).

    With few pairs chance alone adds less to it than to the error with a fixed number of bins.
    """
    order, error = np.argsort(chance, kind="stable"), 0.0
    for count in range(1, len(order) + 1):
        parts = np.array_split(order, count)
        shares = np.array([same[part].mean() for part in parts])
        if (np.diff(shares) < 0).any():
            break
        means, sizes = (
            np.array([chance[part].mean() for part in parts]),
            np.array([len(part) for part in parts]),
        )
        error = float(np.abs(means - shares) @ sizes / len(order))
    return error


def error_if_perfect(chance: Float64Array, rng: np.random.Generator) -> float:
    """What the error would come to with so many pairs, were every probability exactly right: chance alone."""
    return float(
        np.mean(
            [calibration_error(chance, rng.random(len(chance)) < chance) for _ in range(_DRAWS)]
        )
    )


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One diagram: the truth of some pairs (p,), and what was thought of them, (p,) for each entry of the legend."""

    title: str
    same: BoolArray
    chances: Sequence[Float64Array]


def diagram(rows: Sequence[tuple[str, Sequence[Panel]]], legend: Sequence[str]) -> str:
    """Reliability diagrams as SVG, a row of panels under each title.

    `legend` names up to two kinds of probability, the panels' `chances`. The bars say how many
    pairs have a probability of the first kind in each tenth.
    """
    columns = max(len(panels) for _, panels in rows)
    width, height = max(_GAP + columns * (_SIDE + _GAP), 640), _GAP + len(rows) * (_SIDE + _GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        "<style>text { font: 12px sans-serif } .count { font-size: 8px; fill: #777 }</style>",
        f'<g transform="translate({_GAP} 20)">',
        *(
            f'<text x="{240 * i}" fill="{_COLOURS[i]}">● {escape(text)}</text>'
            for i, text in enumerate(legend)
        ),
        "</g>",
        f'<text class="count" x="{_GAP}" y="34">each point: equally many pairs; bars: how many lie there</text>',
    ]
    for r, (title, panels) in enumerate(rows):
        for c, panel in enumerate(panels):
            out.append(
                f'<g transform="translate({_GAP + c * (_SIDE + _GAP)} {_GAP + r * (_SIDE + _GAP)})">'
            )
            out.append(f'<text y="-20">{escape(title)}</text>')
            out += _plot(panel)
            out.append("</g>")
    out.append("</svg>\n")
    return "\n".join(out)


def _plot(panel: Panel) -> Iterator[str]:
    side, pairs = _SIDE, len(panel.same)
    yield f'<rect width="{side}" height="{side}" fill="none" stroke="#999"/>'
    yield f'<path d="M0 {side}L{side} 0" stroke="#bbb"/><text y="-6">{escape(panel.title)}, {pairs} pairs</text>'
    yield f'<text x="{side / 2}" y="{side + 28}" text-anchor="middle">probability</text>'
    yield f'<text transform="translate(-8 {side / 2}) rotate(-90)" text-anchor="middle">share of one person</text>'
    yield f'<text y="{side + 14}">0</text><text x="{side}" y="{side + 14}" text-anchor="end">1</text>'
    yield from _bars(panel.chances[0])
    for chance, colour in reversed(list(zip(panel.chances, _COLOURS, strict=False))):
        points = [
            (round(side * mean, 1), round(side * (1 - share), 1), count)
            for mean, share, count in bins_of(chance, panel.same)
        ]
        line = " ".join(f"{x},{y}" for x, y, _ in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        for x, y, count in points:
            yield f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"><title>{count} pairs</title></circle>'


def _bars(chance: Float64Array) -> Iterator[str]:
    counts = np.histogram(chance, bins=_MOST_BINS, range=(0, 1))[0].tolist()
    wide = _SIDE / _MOST_BINS
    for i, count in enumerate(counts):
        if count:
            tall = round(_TALLEST_BAR * count / max(counts), 1)
            yield f'<rect x="{i * wide}" y="{_SIDE - tall}" width="{wide}" height="{tall}" fill="#eee"/>'
            yield f'<text class="count" x="{(i + 0.5) * wide}" y="{_SIDE - 2}" text-anchor="middle">{count}</text>'
