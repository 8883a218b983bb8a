"""The broker that the integration tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kafka
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_report_header() -> str:
    return f"broker: {kafka.broker_source()[0]}"


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
