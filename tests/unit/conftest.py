"""Fixtures of the tests of media access: a media root, servers on the loopback, and what is allowed to reach them."""

from __future__ import annotations

import pytest
from media_servers import running_server


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    return folder


@pytest.fixture
def server():
    with running_server() as made:
        yield made
