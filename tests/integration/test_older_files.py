"""What older versions wrote is read by the code of today.

Each folder in tests/fixtures is named for the commit that wrote it; make.py there makes them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from processes import run_streamproc
from services import get

from streamproc.gallery import load_curves
from streamproc.kafka.connection import group_of
from streamproc.kafka.topics import changelog_of

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
COMMITS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
GALLERY = "lobby"


@pytest.fixture(params=COMMITS)
def written(request) -> Path:
    """A folder of files of one commit."""
    return FIXTURES / request.param


def changelog(written) -> list[tuple[bytes, bytes | None]]:
    """The records of the matcher's changelog."""
    records = []
    for line in (written / "changelog.jsonl").read_text().splitlines():
        record = json.loads(line)
        value = record["value"]
        records.append((record["key"].encode(), None if value is None else value.encode()))
    return records


def send_to_changelog(stream, records) -> None:
    """Put records on the changelog of an installation, whose topics have one partition."""
    name = changelog_of(stream.settings).removeprefix(stream.settings.kafka.topic_prefix)
    stream.send(name, *records, partition=0)


def assert_answers_as_before(matcher, written) -> None:
    """The gallery has the persons, the similarities and the candidates that it had."""
    before = json.loads((written / "gallery.json").read_text())
    now = get(f"{matcher.url}/galleries/{GALLERY}/similarity")
    assert now["person_keys"] == before["person_keys"]
    np.testing.assert_allclose(now["similarity"], before["similarity"], atol=1e-6)
    found = {candidate["candidate_id"]: candidate for candidate in now["candidates"]}
    assert len(before["candidates"]) == len(found) > 1
    for candidate in before["candidates"]:
        assert candidate.items() <= found[candidate["candidate_id"]].items()


def test_a_matcher_reads_an_older_changelog(stream, written) -> None:
    """A matcher without a local copy has the gallery that an older one put on Kafka."""
    stream = stream(topics__person_embeddings__partitions=1)
    send_to_changelog(stream, changelog(written))
    assert_answers_as_before(stream.start("matcher"), written)


def test_a_matcher_takes_over_an_older_local_copy(stream, written) -> None:
    """A matcher with an older one's state folder has its gallery, and reads no old record again.

    The records in this changelog cannot be read.
    """
    stream = stream(topics__person_embeddings__partitions=1)
    send_to_changelog(stream, [(b"no key", b"no value")] * len(changelog(written)))
    target = Path(stream.settings.matcher.state_folder) / group_of(stream.settings, "matcher")
    # Each file gets the time of today: a copy that is too old would be removed.
    shutil.copytree(written / "state" / "streamproc-matcher", target, copy_function=shutil.copyfile)
    assert_answers_as_before(stream.start("matcher"), written)


def test_an_older_calibration_file_is_read_whole(written) -> None:
    """The curve has the numbers of the file."""
    path = written / "calibration.json"
    curves = load_curves(path)
    content = json.loads(path.read_text())["curves"]
    assert len(curves) == 1
    assert {sha256: curve.to_json() for sha256, curve in curves.items()} == content


def test_evaluate_reads_an_older_output_folder(written, sample, sample_truth, tmp_path) -> None:
    """The candidates of the folder are compared with the truth, by the tracks that it names."""
    for name in ("sample.mp4", "sample.persons.npz"):
        shutil.copy(sample / name, tmp_path)
    arguments = (written / "output", "--truth", sample_truth, "--json")
    done = run_streamproc("evaluate", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["measure"] == "probability"
    assert found["true_pairs"] == 1
    assert found["scored"][0]["recall"] == 1


def test_calibrate_reads_an_older_output_folder(written, sample_truth, tmp_path) -> None:
    """Its persons are placed on the truth: one pair is true, which is too few for a curve."""
    arguments = (written / "output", "--truth", sample_truth, "-o", tmp_path / "curve.json")
    done = run_streamproc("calibrate", *arguments)
    assert done.returncode == 2
    assert "1 true and" in done.stderr
