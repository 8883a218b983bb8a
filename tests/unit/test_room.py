"""Files that are fetched at the same time fit on the disk together, or wait for each other."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from streamproc.errors import MachineError
from streamproc.storage.allowed import RefusedError
from streamproc.storage.room import Room


@pytest.fixture
def disk(monkeypatch):
    """A disk of 1,000 blocks of a byte, all free."""
    made = SimpleNamespace(f_blocks=1000, f_bavail=1000, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: made)
    return made


def test_a_file_waits_until_others_have_left(disk, tmp_path):
    """What is promised to a file that is still fetched counts as taken."""
    room = Room()
    first, second = room.claim(), room.claim()
    assert first.take("a", tmp_path, 600)
    assert not second.take("b", tmp_path, 600)
    assert first.take("a", tmp_path, 600)  # another attempt at the same file
    first.written_bytes = 600
    disk.f_bavail = 400
    assert not second.take("b", tmp_path, 600)
    first.release()
    disk.f_bavail = 1000
    assert second.take("b", tmp_path, 600)


def test_a_file_that_never_fits_is_refused(disk, tmp_path):
    """It is larger than the disk, so waiting cannot help."""
    with pytest.raises(RefusedError, match="TMPDIR"):
        Room().claim().take("a", tmp_path, disk.f_blocks + 1)


def test_where_others_have_the_room_it_is_the_machines_fault(disk, tmp_path):
    """No file of this process would leave enough: whoever has the rest must make room."""
    disk.f_bavail = 100
    room = Room()
    held = room.claim()
    assert held.take("a", tmp_path, 50)
    with pytest.raises(MachineError, match="make room"):
        room.claim().take("b", tmp_path, 600)
