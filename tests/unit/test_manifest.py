"""The manifest of weights: true of the files at hand, and strict about names and hashes."""

from __future__ import annotations

import json

import pytest

from streamproc.errors import WeightsError
from streamproc.files import sha256_of
from streamproc.gallery import load_curves
from streamproc.networks.manifest import (
    ModelEntry,
    load_manifest,
    locate,
    package_file,
    require,
    search_folders,
)
from streamproc.reid import find_weights
from streamproc.reid.export import DEFAULT_NAME
from streamproc.tracks.detection.detector import DEFAULT_NAME as DETECTOR_NAME

A = "osnet_x0_25_msmt17"
OWN_NAMES = (DEFAULT_NAME, DETECTOR_NAME)


def entry(content=b"weights", **changes):
    """An entry of a model called tiny, whose file has this content."""
    import hashlib

    fields = {
        "name": "tiny",
        "architecture": "osnet_x0_25",
        "dim": 4,
        "input": [3, 256, 128],
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "licence": "MIT",
        "trained_on": "nothing",
        "file_name": "tiny.pth",
        "url": "https://example.org/files/published-name.pt?download=true",
    }
    return ModelEntry.model_validate_json(json.dumps(fields | changes))


@pytest.mark.parametrize("name", OWN_NAMES)
def test_the_packages_entry_is_the_file_that_it_carries(name) -> None:
    """The default weights' hash and size are those of the package's file, which is found."""
    own = load_manifest().find(name)
    path = package_file(own.file_name)
    assert (own.sha256, own.size_bytes) == (sha256_of(path), path.stat().st_size)
    assert locate(own, ()) == (path, ())


def test_the_entry_of_the_published_weights_is_the_file_that_was_measured(shared) -> None:
    """The published weights' hash and size are those of the shared file."""
    published = load_manifest().find(A)
    path = shared / "models" / published.file_name
    assert (published.sha256, published.size_bytes) == (sha256_of(path), path.stat().st_size)


def test_every_entry_names_its_curve() -> None:
    """Each entry has the id of its weights' curve, and the default weights have one."""
    curves = load_curves(package_file("calibration.json"))
    named = {entry.sha256: entry.calibration_id for entry in load_manifest().models}
    known = {sha256: curve.calibration_id for sha256, curve in curves.items()}
    assert named == {sha256: known.get(sha256) for sha256 in named}
    assert named[load_manifest().find(DEFAULT_NAME).sha256]


def test_everything_that_can_be_pulled_has_a_hash_and_a_secure_address() -> None:
    """All models but the package's own have an https address."""
    for model in load_manifest().models:
        assert model.name in OWN_NAMES or model.url.startswith("https://")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m["models"].append(m["models"][0]), "expected every name once"),
        (
            lambda m: m["models"].append(m["models"][0] | {"name": "other"}),
            "expected every sha256 once",
        ),
        (lambda m: m["models"][0].update(sha256="abc"), "models.0.sha256: string should match"),
        (lambda m: m["models"][0].update(url="ftp://x"), "models.0.url"),
        (lambda m: m["models"][0].update(file_name="../x.pth"), "models.0.file_name"),
        (lambda m: m["models"][0].update(licence=""), "models.0.licence"),
        (lambda m: m["models"][0].update(licens="MIT"), "models.0.licens: extra inputs"),
        (lambda m: m.update(format_version=2), "format_version"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_line(tmp_path, change, text) -> None:
    """A wrong manifest raises a WeightsError of one line that names the field."""
    content = json.loads(package_file("manifest.json").read_bytes())
    change(content)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=text) as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_named(tmp_path) -> None:
    """A missing manifest raises a WeightsError that says what was expected."""
    with pytest.raises(WeightsError, match="expected the manifest of weights"):
        load_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("name", ["tiny.pth", "tiny.onnx", "published-name.pt"])
def test_a_file_is_found_under_every_name_that_it_goes_by(tmp_path, name) -> None:
    """A file is found by its file name, the model's name and its address's name."""
    (tmp_path / name).write_bytes(b"weights")
    assert locate(entry(), (tmp_path,)) == (tmp_path / name, ())


def test_the_offline_folder_comes_first_and_a_file_with_another_hash_is_passed_over(
    tmp_path,
) -> None:
    """The offline folder is searched first, and a file of another hash is passed over."""
    folders = search_folders(tmp_path / "cache", tmp_path / "offline")
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "tiny.pth").write_bytes(b"weights")
    assert require(entry(), folders) == tmp_path / "offline" / "tiny.pth"
    (tmp_path / "offline" / "tiny.pth").write_bytes(b"others of this name")
    assert locate(entry(), folders) == (
        folders[1] / "tiny.pth",
        (tmp_path / "offline" / "tiny.pth",),
    )


def test_weights_that_are_not_here_say_what_to_type(tmp_path) -> None:
    """Missing weights name the command to pull them, and a file of another hash is named."""
    with pytest.raises(
        WeightsError, match="is not on this machine: run `streamproc models pull tiny`"
    ) as caught:
        require(entry(), (tmp_path,))
    assert "\n" not in str(caught.value)
    (tmp_path / "tiny.pth").write_bytes(b"others of this name")
    with pytest.raises(
        WeightsError, match=r"tiny\.pth is another file \(sha256 [0-9a-f]{8}\): .* or give a path"
    ):
        require(entry(), (tmp_path,))


def test_weights_by_name_are_never_those_of_another_file(tmp_path, shared, exports) -> None:
    """Other weights under a known name are refused by name and taken by path."""
    wrong = tmp_path / f"{A}.pt"
    wrong.write_bytes((shared / "models" / f"{A}.B.converted.pt").read_bytes())
    with pytest.raises(WeightsError, match="is another file"):
        find_weights(A, cache_folder=tmp_path / "cache", models_folder=tmp_path)
    pytest.importorskip(
        "torch", reason="torch is not installed: a checkpoint by path is exported by it"
    )
    assert find_weights(
        str(wrong), cache_folder=exports, models_folder=tmp_path
    ).sha256 == sha256_of(wrong)


def test_weights_by_name_are_found_in_the_offline_folder(shared, exports) -> None:
    """Weights asked for by name are those of the offline folder with the manifest's hash."""
    pytest.importorskip("torch", reason="torch is not installed: a checkpoint is exported by it")
    weights = find_weights(A, cache_folder=exports, models_folder=shared / "models")
    assert (weights.name, weights.sha256) == (A, load_manifest().find(A).sha256)
    assert weights.checkpoint_path == shared / "models" / f"{A}.pth"


def test_the_default_weights_have_a_name_too(tmp_path) -> None:
    """Asking for the default weights by name gives the same as asking for none."""
    assert find_weights(DEFAULT_NAME, cache_folder=tmp_path) == find_weights(
        None, cache_folder=tmp_path
    )
