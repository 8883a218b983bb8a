"""The command `streamproc evaluate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, NamedPath, faults_in_one_line

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.gallery.audit import Audit
    from streamproc.offline.evaluation import Evaluation

_PROBABILITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SIMILARITIES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@click.command(epilog=EXIT_CODES)
@click.argument("outputs", metavar="OUTPUT...", nargs=-1, required=True, type=NamedPath())
@click.option(
    "--truth",
    "truths",
    multiple=True,
    type=NamedPath(),
    help="MOT Challenge text whose ids are the true persons: one for all, or one for each OUTPUT.",
)
@click.option(
    "--decisions",
    is_flag=True,
    help="Or: how right the probabilities were by what reviewers decided in each OUTPUT.",
)
@click.option(
    "--persons",
    "persons",
    multiple=True,
    type=NamedPath(),
    help="Track file, one for each OUTPUT. [default: the one that run.json of OUTPUT names]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
def evaluate(
    outputs: tuple[Path, ...],
    truths: tuple[Path, ...],
    persons: tuple[Path, ...],
    *,
    decisions: bool,
    as_json: bool,
) -> None:
    """Compare OUTPUT, a folder that `streamproc replay` wrote for one video, with the truth.

    Prints precision and recall of the candidates over thresholds, the tracks' IDF1 and HOTA as they
    are, merged, and merged by the truth, and which share of that gain was reached. Of several
    folders also the medians of these shares.

    With --decisions it prints, for bins of probability, how many pairs reviewers decided, which
    share of them they called the same person, and how far that is from the probability.
    """
    if decisions:
        _audit_each(outputs, has_others=bool(truths or persons), as_json=as_json)
        return
    with faults_in_one_line():
        found = _evaluated_each(outputs, truths, persons)
    if as_json:
        _print_json(found)
        return
    for output, (evaluation, measure) in zip(outputs, found, strict=True):
        if len(outputs) > 1:
            click.echo(f"{output}:")
        _print_table(evaluation, measure)
    if len(outputs) > 1:
        _print_medians([evaluation for evaluation, _ in found])


def _evaluated_each(
    outputs: tuple[Path, ...], truths: tuple[Path, ...], persons: tuple[Path, ...]
) -> list[tuple[Evaluation, str]]:
    from streamproc.errors import UsageError

    count = len(outputs)
    if not truths:
        raise UsageError("expected --truth, a text of who is who, or --decisions")
    if len(truths) not in (1, count):
        raise UsageError(f"expected one --truth, or one for each OUTPUT, got {len(truths)}")
    if len(persons) not in (0, count):
        raise UsageError(f"expected no --persons, or one for each OUTPUT, got {len(persons)}")
    of_each = truths if len(truths) == count else truths * count
    tracks = persons or (None,) * count
    return [_evaluated(*each) for each in zip(outputs, of_each, tracks, strict=True)]


def _audit_each(outputs: tuple[Path, ...], *, has_others: bool, as_json: bool) -> None:
    from streamproc.errors import UsageError
    from streamproc.gallery.audit import audit
    from streamproc.offline.replay_folder import read_decisions, read_folder

    found: list[Audit] = []
    with faults_in_one_line():
        if has_others:
            raise UsageError("--decisions: expected neither --truth nor --persons with it")
        for output in outputs:
            folder = read_folder(output)
            decided = read_decisions(folder.decisions_path)
            own = [one for one in decided if one.gallery_id == folder.gallery_id]
            found.append(audit(own, folder.probabilities()))
    if as_json:
        _write_json([one.as_json() for one in found])
        return
    for output, one in zip(outputs, found, strict=True):
        if len(outputs) > 1:
            click.echo(f"{output}:")
        _print_audit(one)


def _print_audit(found: Audit) -> None:
    click.echo(
        f"left out: {found.unsure} pairs not sure, {found.without_probability} pairs without a "
        f"probability, {found.undone} decisions undone",
        err=True,
    )
    click.echo("probability\tpairs decided\tsame person\toff by")
    for row in found.rows:
        range_ = f"{row.least:.2f} to {row.greatest:.2f}"
        click.echo(f"{range_}\t{row.pairs}\t{row.same:.2f}\t{row.error:.2f}")
    if found.error is None:
        click.echo("no pair with a probability was called the same or different", err=True)
        return
    click.echo(f"all\t{len(found.same)}\t{found.same.mean():.2f}\t{found.error:.2f}")
    click.echo(f"off by {found.error_by_chance:.2f} were all exact: by chance alone", err=True)


def _print_json(found: list[tuple[Evaluation, str]]) -> None:
    each = [{"measure": measure} | asdict(evaluation) for evaluation, measure in found]
    _write_json(each)


def _write_json(each: list[dict[str, Any]]) -> None:
    import orjson

    content = each[0] if len(each) == 1 else {"outputs": each}
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
    click.echo("merged by\tIDF1\tHOTA\tshare of the gain in IDF1\tin HOTA")
    for way in found.merged:
        shares = f"{_share(way.idf1_share)}\t{_share(way.hota_share)}"
        click.echo(f"{way.by}\t{way.idf1:.3f}\t{way.hota:.3f}\t{shares}")


def _print_medians(found: list[Evaluation]) -> None:
    """Print the median share of the gain of each way to merge, over the folders with a gain."""
    from statistics import median

    click.echo(f"{len(found)} folders, medians:")
    click.echo("merged by\tshare of the gain in IDF1\tin HOTA")
    for place, way in enumerate(found[0].merged):
        rows = [evaluation.merged[place] for evaluation in found]
        idf1 = [row.idf1_share for row in rows if row.idf1_share is not None]
        hota = [row.hota_share for row in rows if row.hota_share is not None]
        shares = (_share(median(known) if known else None) for known in (idf1, hota))
        click.echo("\t".join((way.by, *shares)))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _evaluated(output: Path, truth: Path, persons: Path | None) -> tuple[Evaluation, str]:
    """Return the evaluation, and whether "probability" or "similarity" was compared."""
    from streamproc.offline import evaluation
    from streamproc.offline.parts import in_parts, with_ids
    from streamproc.tracks import read_tracks

    candidates, groups, cuts, tracks_path = _read(output)
    tracks, ids = with_ids(in_parts(read_tracks(persons or tracks_path).tracks, cuts))
    is_calibrated = bool(candidates) and all("probability" in event for event in candidates)
    measure = "probability" if is_calibrated else "similarity"
    pairs = [_pair_of(output, event, measure, ids) for event in candidates]
    likely = [
        pair[:2]
        for pair, event in zip(pairs, candidates, strict=True)
        if event.get("band") == "likely"
    ]
    ways = {
        "likely": likely,
        "all": [pair[:2] for pair in pairs],
        "groups": [pair for event in groups for pair in _pairs_of_group(output, event, ids)],
    }
    found = evaluation.evaluate(
        tracks,
        read_tracks(truth).tracks,
        pairs,
        _PROBABILITIES if is_calibrated else _SIMILARITIES,
        ways,
    )
    return found, measure


def _pairs_of_group(output: Path, event: Any, ids: dict[str, int]) -> list[tuple[int, int]]:
    """The first person's id of a group with each other's, as an output folder says."""
    from streamproc.errors import UsageError

    try:
        members = [ids[key.rpartition("/")[2]] for key in event["person_keys"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{output}: expected groups as `streamproc replay` writes them ({error!r})"
        ) from error
    return [(members[0], other) for other in members[1:]]


def _pair_of(output: Path, event: Any, measure: str, ids: dict[str, int]) -> tuple[int, int, float]:
    """Two person ids and how sure their pair is, as a candidate of an output folder says."""
    from streamproc.errors import UsageError

    try:
        first, second = (ids[_name_of(person)] for person in event["persons"])
        return first, second, float(event[measure])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{output}: expected candidates as `streamproc replay` writes them ({error!r})"
        ) from error


def _name_of(person: Any) -> str:
    """Return how a person is called within their video: by the track's id, "7#2" for a part."""
    return str(person.get("person_key", person.get("person_id"))).rpartition("/")[2]


def _read(
    output: Path,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[int, int], Path]:
    """Return candidates, groups, where tracks were cut, and the track file of an output folder.

    Where tracks were cut is the first frame of the second part, by the track's id. Raises
    UsageError. Folders of older versions have no groups, and no tracks that were cut.
    """
    import orjson

    from streamproc.errors import UsageError
    from streamproc.offline.parts import read_cuts
    from streamproc.offline.replay_folder import path_named

    try:
        run = orjson.loads((output / "run.json").read_bytes())
        lines = (output / "duplicate_candidates.jsonl").read_bytes().splitlines()
        candidates = [orjson.loads(line) for line in lines]
        path = output / "duplicate_groups.jsonl"
        known = path.read_bytes().splitlines() if path.is_file() else []
        groups = [orjson.loads(line) for line in known]
        cuts = next(iter(read_cuts(output).values()), {})
        videos = run["videos"]
        where = str(run.get("working_directory") or "")
        tracks_path = path_named(where, videos[0]["tracks_path"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{output}: expected a folder that `streamproc replay` wrote ({error})"
        ) from error
    if len(videos) != 1:
        raise UsageError(
            f"{output}: expected the output of one video, got {len(videos)}: "
            "give one of its subfolders"
        )
    return candidates, groups, cuts, tracks_path
