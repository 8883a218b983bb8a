"""The broker that the integration tests share, installations on it, and the sample's truth."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from typing import TYPE_CHECKING, NoReturn

import brokers
import pytest
import services

from streamproc.kafka.topics import create_topics
from streamproc.tracks import load_tracks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running broker; each installation on it has topics of its own."""
    words, source = brokers.broker_source()
    if source is None:
        _skip(words)
    if isinstance(source, str):
        yield source
        return
    broker = brokers.start_broker(tmp_path_factory.mktemp("kafka"))
    try:
        yield broker.bootstrap
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def jars() -> Path:
    """Kafka's jars, for a broker of a test's own."""
    folder, reason = brokers.jars_or_reason()
    if folder is None:
        _skip(reason)
    return folder


def _skip(reason: str) -> NoReturn:
    """CI must be able to run a broker; elsewhere the tests without one are worth a run too."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def sample_truth(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's own tracks as MOT text of the true persons: tracks 1 and 6 are one."""
    rows = []
    for track in load_tracks(sample / "sample.persons.npz").tracks:
        who = 1 if track.person_id == 6 else track.person_id
        for frame, (x, y, right, bottom) in zip(track.frame_indices, track.boxes_xyxy, strict=True):
            rows.append(f"{frame + 1},{who},{x},{y},{right - x},{bottom - y},1,1,1\n")
    path = tmp_path_factory.mktemp("truth") / "sample.txt"
    path.write_text("".join(rows))
    return path


@pytest.fixture
def stream(bootstrap: str, tmp_path: Path, sample) -> Iterator[Callable[..., services.Stream]]:
    """Makes installations with the sample clip, four times over, in their media root."""
    made = []

    def make(**settings: object) -> services.Stream:
        folder = tmp_path / f"stream{len(made)}"
        folder.mkdir()
        installation = services.Stream(bootstrap, folder, f"t{uuid.uuid4().hex[:8]}.", **settings)
        made.append(installation)
        for name in ("a", "b", "c", "d"):
            shutil.copy(sample / "sample.mp4", installation.media / f"{name}.mp4")
            shutil.copy(sample / "sample.persons.npz", installation.media / f"{name}.persons.npz")
        asyncio.run(create_topics(installation.settings))
        return installation

    yield make
    for installation in made:
        installation.close()
