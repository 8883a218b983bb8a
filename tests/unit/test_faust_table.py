"""The matcher's Faust table: its folders on one machine, and its credentials."""

from __future__ import annotations

import os

import faust
import pytest
import rocksdict

from streamproc.services.matcher.faust_table import credentials_of, forget_removed, instance_folder
from streamproc.settings import load_settings


def make_store(folder):
    """Make a local copy as the matcher has it, with one entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    store[b"key"] = b"value"
    store.close()


def test_matchers_on_one_machine_have_folders_of_their_own_and_find_them_again(tmp_path):
    """Two matchers at once get different folders, and a later one gets the first again."""
    settings = load_settings({"matcher.state_folder": str(tmp_path / "state")}, config_file=None)
    with instance_folder(settings) as first, instance_folder(settings) as second:
        assert first != second
    with instance_folder(settings) as again:
        assert again == first


def test_a_local_copy_that_was_long_not_written_is_read_anew(tmp_path):
    """A local table that was not written for long is removed, and a fresh one is kept."""
    settings = load_settings({"matcher.state_folder": str(tmp_path)}, config_file=None)
    with instance_folder(settings) as folder:
        stores = [folder / "v1" / "tables" / f"rows-{i}.db" for i in range(2)]
        for store in stores:
            make_store(store)
        for path in stores[0].iterdir():
            os.utime(path, (1, 1))
    with instance_folder(settings):
        assert [store.exists() for store in stores] == [False, True]


def test_a_local_copy_that_is_damaged_is_read_anew(tmp_path, caplog):
    """What RocksDB cannot open is removed with a line that says so; what it can is kept."""
    settings = load_settings({"matcher.state_folder": str(tmp_path)}, config_file=None)
    with instance_folder(settings) as folder:
        stores = [folder / "v1" / "tables" / f"rows-{i}.db" for i in range(2)]
        for store in stores:
            make_store(store)
        for manifest in stores[0].glob("MANIFEST-*"):
            manifest.write_bytes(b"\0" * 100)
    with instance_folder(settings):
        assert [store.exists() for store in stores] == [False, True]
    assert "read anew from Kafka" in caplog.text
    kept = rocksdict.Rdict(str(stores[1]), rocksdict.Options(raw_mode=True))
    assert kept[b"key"] == b"value"
    kept.close()


def test_what_was_removed_leaves_the_files_of_a_local_copy(tmp_path):
    """RocksDB marks it first; afterwards no file holds its bytes, and the rest is there."""
    folder = tmp_path / "rows-0.db"
    make_store(folder)
    secret = os.urandom(1000)

    def is_there():
        return [path.name for path in folder.iterdir() if secret[:200] in path.read_bytes()]

    store = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    store[b"secret"] = secret
    store.flush()
    del store[b"secret"]
    assert is_there()
    forget_removed(store)
    assert not is_there()
    assert store[b"key"] == b"value"
    store.close()


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_gets_the_same_credentials_as_the_other_clients(protocol):
    """Faust's credentials have the protocol, mechanism, name and password of the settings."""
    flags = {
        "kafka.security_protocol": protocol,
        "kafka.sasl_mechanism": "SCRAM-SHA-512",
        "kafka.sasl_username": "u",
        "kafka.sasl_password": "p",
    }
    made = credentials_of(load_settings(flags, config_file=None))
    if protocol == "PLAINTEXT":
        assert made is None
        return
    assert made.protocol.value == protocol
    if protocol.startswith("SASL"):
        assert isinstance(made, faust.SASLCredentials)
        assert (made.username, made.password, made.mechanism.value) == ("u", "p", "SCRAM-SHA-512")
