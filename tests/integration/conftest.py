"""The broker that the integration tests share."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from typing import TYPE_CHECKING

import kafka
import pytest
import services

from streamproc.kafka.topics import create_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running broker; each test takes topics of its own (`kafka.isolated`)."""
    words, source = kafka.broker_source()
    if source is None:
        pytest.skip(words)
    if isinstance(source, str):
        yield source
        return
    broker = kafka.start_broker(tmp_path_factory.mktemp("kafka"))
    try:
        yield broker.bootstrap
    finally:
        broker.stop()


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
