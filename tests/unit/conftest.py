"""Fixtures of the tests of media access: a media root, and a server on the loopback."""

from __future__ import annotations

import pytest
from media_servers import running_server


@pytest.fixture
def root(tmp_path):
    """An empty media root."""
    folder = tmp_path / "media"
    folder.mkdir()
    return folder


@pytest.fixture
def server():
    """A running HTTP server that answers as the test says."""
    with running_server() as made:
        yield made
