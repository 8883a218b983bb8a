"""The command `streamproc evaluate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, NamedPath, faults_in_one_line

if TYPE_CHECKING:
    from streamproc.offline.evaluation import Evaluation

_PROBABILITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SIMILARITIES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=NamedPath())
@click.option(
    "--truth",
    required=True,
    type=NamedPath(),
    help="MOT Challenge text whose ids are the true persons.",
)
@click.option(
    "--persons",
    type=NamedPath(),
    help="Track file. [default: the one that run.json of OUTPUT names]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
def evaluate(output: Path, truth: Path, persons: Path | None, *, as_json: bool) -> None:
    """Compare OUTPUT, a folder that `streamproc replay` wrote for one video, with the truth.

    Prints precision and recall of the candidates over thresholds, and the tracks' IDF1 before and
    after merging them.
    """
    with faults_in_one_line():
        found, measure = _evaluated(output, truth, persons)
    if as_json:
        _print_json(found, measure)
    else:
        _print_table(found, measure)


def _print_json(found: Evaluation, measure: str) -> None:
    import orjson

    content = {"measure": measure} | asdict(found)
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    sys.stdout.buffer.write(orjson.dumps(content, option=options))


def _print_table(found: Evaluation, measure: str) -> None:
    click.echo(
        f"{found.true_pairs} true pairs; IDF1 of the tracks as they are {found.idf1:.3f}", err=True
    )
    if found.tracks_without_person:
        click.echo(
            f"{found.tracks_without_person} tracks lie on no true person "
            "in at least half of their boxes",
            err=True,
        )
    click.echo(f"{measure}\tcandidates\tprecision\trecall\tIDF1 merged")
    for row in found.scored:
        precision = _share(row.precision)
        recall = _share(row.recall)
        click.echo(f"{row.least:.2f}\t{row.candidates}\t{precision}\t{recall}\t{row.idf1:.3f}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _evaluated(output: Path, truth: Path, persons: Path | None) -> tuple[Evaluation, str]:
    """Return the evaluation, and whether "probability" or "similarity" was compared."""
    from streamproc.offline import evaluation
    from streamproc.tracks import read_tracks

    candidates, tracks_path = _read(output)
    is_calibrated = bool(candidates) and all("probability" in event for event in candidates)
    measure = "probability" if is_calibrated else "similarity"
    pairs = [_pair_of(output, event, measure) for event in candidates]
    found = evaluation.evaluate(
        read_tracks(persons or tracks_path).tracks,
        read_tracks(truth).tracks,
        pairs,
        _PROBABILITIES if is_calibrated else _SIMILARITIES,
    )
    return found, measure


def _pair_of(output: Path, event: Any, measure: str) -> tuple[int, int, float]:
    """Two person ids and how sure their pair is, as a candidate of an output folder says."""
    from streamproc.errors import UsageError

    try:
        first, second = (int(person["person_id"]) for person in event["persons"])
        return first, second, float(event[measure])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{output}: expected candidates as `streamproc replay` writes them ({error!r})"
        ) from error


def _read(output: Path) -> tuple[list[dict[str, Any]], Path]:
    """Return the candidates and the track file of an output folder. Raises UsageError."""
    import orjson

    from streamproc.errors import UsageError

    try:
        run = orjson.loads((output / "run.json").read_bytes())
        lines = (output / "duplicate_candidates.jsonl").read_bytes().splitlines()
        candidates = [orjson.loads(line) for line in lines]
        videos = run["videos"]
        tracks_path = Path(videos[0]["tracks_path"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{output}: expected a folder that `streamproc replay` wrote ({error})"
        ) from error
    if len(videos) != 1:
        raise UsageError(
            f"{output}: expected the output of one video, got {len(videos)}: "
            "give one of its subfolders"
        )
    return candidates, tracks_path
