"""The command `streamproc evaluate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, faults_in_one_line

if TYPE_CHECKING:
    from streamproc.offline.evaluation import Evaluation

_PROBABILITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SIMILARITIES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--truth",
    required=True,
    type=click.Path(path_type=Path),
    help="MOT Challenge text whose ids are the true persons.",
)
@click.option(
    "--persons",
    type=click.Path(path_type=Path),
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
        import orjson

        sys.stdout.buffer.write(
            orjson.dumps(
                {"measure": measure} | asdict(found),
                option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
            )
        )
        return
    click.echo(
        f"{found.true_pairs} true pairs; IDF1 of the tracks as they are {found.idf1:.3f}", err=True
    )
    if found.tracks_without_person:
        click.echo(
            f"note: {found.tracks_without_person} tracks lie on no true person for half of their boxes",
            err=True,
        )
    click.echo(f"{measure}\tcandidates\tprecision\trecall\tIDF1 merged")
    for row in found.scored:
        shares = "\t".join(
            "-" if share is None else f"{share:.2f}" for share in (row.precision, row.recall)
        )
        click.echo(f"{row.least:.2f}\t{row.candidates}\t{shares}\t{row.idf1:.3f}")


def _evaluated(output: Path, truth: Path, persons: Path | None) -> tuple[Evaluation, str]:
    from streamproc.offline import evaluation
    from streamproc.tracks import load_tracks

    candidates, tracks_path = _read(output)
    calibrated = bool(candidates) and all("probability" in event for event in candidates)
    measure = "probability" if calibrated else "similarity"
    tracks = load_tracks(persons or tracks_path).tracks
    pairs = [
        (*(person["person_id"] for person in event["persons"]), event[measure])
        for event in candidates
    ]
    thresholds = _PROBABILITIES if calibrated else _SIMILARITIES
    return evaluation.evaluate(tracks, load_tracks(truth).tracks, pairs, thresholds), measure


def _read(output: Path) -> tuple[list[dict[str, Any]], Path]:
    """Candidates, and the track file, of an output folder."""
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
            f"{output}: expected the output of one video, got {len(videos)}: give one of its subfolders"
        )
    return candidates, tracks_path
