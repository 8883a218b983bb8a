"""The command `streamproc calibrate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, NamedPath, faults_in_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streamproc.offline.labels import Calibrated, Metrics


@click.command(epilog=EXIT_CODES)
@click.argument("outputs", nargs=-1, required=True, type=NamedPath())
@click.option(
    "--truth",
    "truths",
    multiple=True,
    type=NamedPath(),
    help="MOT Challenge text whose ids are the true persons, one for each of OUTPUTS.",
)
@click.option(
    "--pairs",
    type=NamedPath(),
    help="Or: lines of person_key,person_key,1 (one person) or 0.",
)
@click.option(
    "--decisions",
    is_flag=True,
    help="Or: what reviewers decided, in decisions.jsonl of each of OUTPUTS.",
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=NamedPath(),
    help="File for the curve, for `replay --calibration`.",
)
@click.option("--plot", type=NamedPath(), help="Reliability diagram, before and after (SVG).")
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
def calibrate(
    outputs: tuple[Path, ...],
    truths: tuple[Path, ...],
    pairs: Path | None,
    out: Path,
    plot: Path | None,
    *,
    decisions: bool,
    as_json: bool,
) -> None:
    """Fit the probability on persons of yours: OUTPUTS are folders that `streamproc replay` wrote.

    Prints how right the probabilities are before and after, on people that the curve was not fitted
    on.
    """
    with faults_in_one_line():
        found = _calibrated(outputs, truths, pairs, by_decisions=decisions)
        _write(found, out, plot)
    for line in _notes(found):
        click.echo(line, err=True)
    if as_json:
        _print_json(found)
    else:
        _print_metrics(found)
    click.echo(
        f"{out}: use it with `streamproc replay --calibration {out}`, "
        f"or STREAMPROC_CLUSTERING__CALIBRATION={out}",
        err=True,
    )


def _calibrated(
    outputs: Sequence[Path], truths: Sequence[Path], pairs: Path | None, *, by_decisions: bool
) -> Calibrated:
    from streamproc.errors import UsageError
    from streamproc.gallery import load_curves
    from streamproc.networks.manifest import package_file
    from streamproc.offline import labels

    if [bool(truths), pairs is not None, by_decisions].count(True) != 1:
        raise UsageError("expected one of --truth, one for each folder, --pairs and --decisions")
    galleries = labels.read_galleries(outputs)
    if by_decisions:
        user_labels = labels.labels_from_decisions(outputs, galleries)
    elif pairs is None:
        user_labels = labels.labels_from_truth(outputs, truths, galleries)
    else:
        user_labels = labels.labels_from_pairs(pairs, galleries)
    package_curves = load_curves(package_file("calibration.json"))
    return labels.calibrate(galleries, user_labels, package_curves)


def _write(found: Calibrated, out: Path, plot: Path | None) -> None:
    from streamproc.gallery.calibration.curve import curves_to_json
    from streamproc.gallery.calibration.reliability import Panel, diagram

    _replace(out, curves_to_json({found.weights_sha256: found.curve}))
    if plot is not None:
        legend = ["after, on people not fitted on"]
        if found.before is not None:
            legend.append("before, by the package's curve")
        title = f"your pairs, {found.true_pairs} true and {found.wrong_pairs} wrong"
        panel = Panel("when closed", found.same, found.probabilities)
        _replace(plot, diagram([(title, [panel])], legend).encode())


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
    """Return what a user should know of the pairs that were used and of what the fit is worth."""
    from streamproc.offline.labels import FEW_OF_A_KIND

    used = found.true_pairs + found.wrong_pairs
    by_truth = f"{found.true_pairs} true and {found.wrong_pairs} wrong"
    notes = [f"{used} pairs above the similarity threshold, {by_truth}"]
    if found.label_count > used:
        notes.append(
            f"{found.label_count - used} labelled pairs are not above it, or were seen apart: "
            "not used"
        )
    if found.gain is None:
        notes.append("the package has no curve for these weights: yours starts from nothing")
    if min(found.true_pairs, found.wrong_pairs) < FEW_OF_A_KIND:
        notes.append(
            f"fewer than {FEW_OF_A_KIND} pairs of a kind: "
            "the metrics are uncertain, and so is the curve"
        )
    if found.gain is not None:
        least, middle, most = found.gain
        interval = f"90 % of resampled people: {least:.3f} to {most:.3f}"
        verdict = _verdict(least, most)
        notes.append(f"log loss when closed falls by {middle:.3f} ({interval}): {verdict}")
    return notes


def _verdict(least: float, most: float) -> str:
    if least > 0:
        return "better"
    if most < 0:
        return "worse: do not use it"
    return "no difference that could be told"


def _print_metrics(found: Calibrated) -> None:
    click.echo("probability\tlog loss\tcalibration error\tby chance alone")
    for name, metrics in (("before", found.before), ("after", found.after)):
        for when, own in (metrics or {}).items():
            values = (own.log_loss, own.calibration_error, own.perfect_error)
            columns = "\t".join(f"{value:.3f}" for value in values)
            click.echo(f"{name}, {when}\t{columns}")


def _print_json(found: Calibrated) -> None:
    import orjson

    def as_json(metrics: Mapping[str, Metrics]) -> dict[str, Any]:
        return {when: asdict(own) for when, own in metrics.items()}

    content = {
        "weights_sha256": found.weights_sha256,
        "calibration_id": found.curve.calibration_id,
        "labelled_pairs": found.label_count,
        "true_pairs": found.true_pairs,
        "wrong_pairs": found.wrong_pairs,
        "before": None if found.before is None else as_json(found.before),
        "after": as_json(found.after),
        "gain": found.gain,
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    sys.stdout.buffer.write(orjson.dumps(content, option=options))
