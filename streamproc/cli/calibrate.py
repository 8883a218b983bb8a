"""The command `streamproc calibrate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.common import EXIT_CODES, faults_in_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.offline.labels import Calibrated


@click.command(epilog=EXIT_CODES)
@click.argument("outputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--truth",
    "truths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="MOT Challenge text whose ids are the true persons, one for each of OUTPUTS.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Or: lines of person_key,person_key,1 (one person) or 0.",
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="File for the curve, for `replay --calibration`.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Reliability diagram, before and after (SVG)."
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
def calibrate(
    outputs: tuple[Path, ...],
    truths: tuple[Path, ...],
    pairs: Path | None,
    out: Path,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Fit the probability on persons of yours: OUTPUTS are folders that `streamproc replay` wrote.

    Prints how right the probabilities are before and after, on people that the curve was not fitted
    on.
    """
    with faults_in_one_line():
        found = _calibrated(outputs, truths, pairs)
        _write(found, out, plot)
    for line in _notes(found):
        click.echo(line, err=True)
    if as_json:
        _print_json(found)
    else:
        _print_figures(found)
    click.echo(
        f"{out}: use it with `streamproc replay --calibration {out}`, or STREAMPROC_CLUSTERING__CALIBRATION={out}",
        err=True,
    )


def _calibrated(outputs: Sequence[Path], truths: Sequence[Path], pairs: Path | None) -> Calibrated:
    from streamproc.errors import UsageError
    from streamproc.gallery import load_curves
    from streamproc.networks.manifest import package_file
    from streamproc.offline import labels as labelled

    if bool(truths) == (pairs is not None):
        raise UsageError("expected either --truth, one for each folder, or --pairs")
    galleries = labelled.read_galleries(outputs)
    known = (
        labelled.by_truth(outputs, truths, galleries)
        if pairs is None
        else labelled.by_pairs(pairs, galleries)
    )
    return labelled.calibrate(galleries, known, load_curves(package_file("calibration.json")))


def _write(found: Calibrated, out: Path, plot: Path | None) -> None:
    from streamproc.gallery.calibration.curve import curves_to_json
    from streamproc.gallery.calibration.reliability import Panel, diagram

    _replace(out, curves_to_json({found.weights_sha256: found.curve}))
    if plot is not None:
        legend = ("after, on people not fitted on", "before, by the package's curve")[
            : len(found.chances)
        ]
        title = f"your pairs, {found.true_pairs} true and {found.wrong_pairs} wrong"
        picture = diagram([(title, [Panel("when closed", found.same, found.chances)])], legend)
        _replace(plot, picture.encode())


def _replace(path: Path, content: bytes) -> None:
    from streamproc.errors import MachineError
    from streamproc.files import replace_file

    try:
        replace_file(path, content)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written: {error.strerror}; make room or name another file"
        ) from error


def _notes(found: Calibrated) -> list[str]:
    from streamproc.offline.labels import FEW_OF_A_KIND

    used = found.true_pairs + found.wrong_pairs
    notes = [
        f"{used} pairs above the similarity threshold, {found.true_pairs} true and {found.wrong_pairs} wrong"
    ]
    if found.labelled > used:
        notes.append(
            f"{found.labelled - used} labelled pairs are not above it, or were seen apart: not used"
        )
    if found.gain is None:
        notes.append("the package has no curve for these weights: yours starts from nothing")
    if min(found.true_pairs, found.wrong_pairs) < FEW_OF_A_KIND:
        notes.append(
            f"note: fewer than {FEW_OF_A_KIND} pairs of a kind: the figures are uncertain, and so is the curve"
        )
    if found.gain is not None:
        least, middle, most = found.gain
        verdict = (
            "better"
            if least > 0
            else "worse: do not use it"
            if most < 0
            else "no difference that could be told"
        )
        spread = f"90 % of resampled people: {least:.3f} to {most:.3f}"
        notes.append(f"log loss when closed falls by {middle:.3f} ({spread}): {verdict}")
    return notes


def _print_figures(found: Calibrated) -> None:
    click.echo("probability\tlog loss\tcalibration error\tby chance alone")
    rows = [] if found.before is None else [("before", found.before)]
    for name, figures in [*rows, ("after", found.after)]:
        for when, figure in figures.items():
            values = (figure.log_loss, figure.calibration_error, figure.perfect_error)
            click.echo("\t".join([f"{name}, {when}", *(f"{value:.3f}" for value in values)]))


def _print_json(found: Calibrated) -> None:
    import orjson

    content = {
        "weights_sha256": found.weights_sha256,
        "calibration_id": found.curve.calibration_id,
        "labelled_pairs": found.labelled,
        "true_pairs": found.true_pairs,
        "wrong_pairs": found.wrong_pairs,
        "before": None
        if found.before is None
        else {when: asdict(f) for when, f in found.before.items()},
        "after": {when: asdict(f) for when, f in found.after.items()},
        "gain": found.gain,
    }
    sys.stdout.buffer.write(
        orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
