"""The network and its weights: equal to the published reference, and strict in loading."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from programs import run_program

from streamproc.errors import WeightsError
from streamproc.files import sha256_of
from streamproc.networks.manifest import package_file
from streamproc.networks.parallel import part_bounds
from streamproc.reid import Embedder, find_weights, person_vector, unit
from streamproc.reid.onnx_backend import BATCH_CROPS, MAX_THREADS, SPLIT_CROPS
from streamproc.reid.preprocessing import normalise


@pytest.fixture(scope="module")
def need_torch():
    """Torch, which only the extra `gpu` installs."""
    return pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")


@pytest.fixture(scope="module")
def default(exports):
    """An Embedder of the package's own weights."""
    return Embedder(find_weights(None, cache_folder=exports))


def noise(count, seed=0):
    """Random crops (count, 256, 128, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 128, 3), np.uint8)


def people(shared, count=24):
    """Crops of real people in the network's size."""
    files = sorted((shared / "data" / "reid" / "market1501_test100").glob("*.jpg"))[:count]
    return np.stack(
        [
            np.asarray(Image.open(f).convert("RGB").resize((128, 256), Image.Resampling.BILINEAR))
            for f in files
        ]
    )


def test_the_default_weights_need_nothing_but_the_package(default) -> None:
    """The default weights give unit vectors of 512 numbers."""
    vectors = default.embed(noise(3))
    assert vectors.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_batches_do_not_change_a_vector(default) -> None:
    """Crops embedded together and one by one have the same vectors; none give none."""
    crops = noise(BATCH_CROPS + 3)
    together = default.embed(crops)
    apart = np.concatenate([default.embed(crops[i : i + 1]) for i in range(len(crops))])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert default.embed(crops[:0]).shape == (0, 512)


def kept_files(folder):
    """The contents of the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_networks_arranged_form_is_kept_and_computes_the_same(tmp_path, default) -> None:
    """The optimised network is stored once, used again, and gives the same vectors."""
    crops = noise(9)
    first = Embedder(find_weights(None, cache_folder=tmp_path / "kept"), device="cpu")
    kept = kept_files(tmp_path / "kept")
    assert sorted(name.rsplit(".", 1)[1] for name in kept) == ["answer", "onnx"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    second = Embedder(find_weights(None, cache_folder=tmp_path / "kept"), device="cpu")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == times
    plain = Embedder(
        replace(find_weights(None, cache_folder=tmp_path), optimized_folder=None), device="cpu"
    )
    for embedder in (first, second):
        assert embedder.weights_sha256 == plain.weights_sha256 == default.weights_sha256
        assert embedder._backend.concurrent == plain._backend.concurrent
        np.testing.assert_array_equal(embedder.embed(crops), plain.embed(crops))


def keep_half(network, _):
    """Cut the stored network off."""
    network.write_bytes(network.read_bytes()[:100_000])


def lose_the_answer(_, answer):
    """Remove the stored answer."""
    answer.unlink()


def empty_the_answer(_, answer):
    """Leave the stored answer empty."""
    answer.write_bytes(b"")


def change_the_answer(_, answer):
    """Turn the numbers of the stored answer round."""
    answer.write_bytes(np.frombuffer(answer.read_bytes(), "<f4")[::-1].tobytes())


def change_the_network(network, _):
    """Change numbers in the network's middle: it loads, and computes something else.

    So does a network that was stored on a processor which orders its numbers otherwise.
    """
    content = bytearray(network.read_bytes())
    for start in range(len(content) // 2, len(content) // 2 + 4000, 4):
        content[start + 2] ^= 0x40
    network.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [keep_half, lose_the_answer, empty_the_answer, change_the_answer, change_the_network]
)
def test_a_stored_network_that_is_not_right_is_made_again(tmp_path, default, harm, caplog) -> None:
    """A stored network that is not right is made again, logged unless it was missing, and kept."""
    caplog.set_level("INFO", "streamproc.networks.sessions")
    weights = find_weights(None, cache_folder=tmp_path)
    Embedder(weights, device="cpu")
    network, answer = (next(tmp_path.glob(f"*.{suffix}")) for suffix in ("onnx", "answer"))
    right_answer = answer.read_bytes()
    harm(network, answer)
    harmed = kept_files(tmp_path)
    np.testing.assert_array_equal(
        Embedder(weights, device="cpu").embed(noise(3)), default.embed(noise(3))
    )
    assert ("optimizing the network again" in caplog.text) == (harm is not lose_the_answer), (
        "what is not there needs no word"
    )
    repaired = kept_files(tmp_path)
    assert repaired != harmed
    assert repaired[answer.name] == right_answer
    np.testing.assert_array_equal(
        Embedder(weights, device="cpu").embed(noise(3)), default.embed(noise(3))
    )
    assert kept_files(tmp_path) == repaired, "what is right is left as it is"


def test_where_nothing_can_be_kept_the_network_opens_as_ever(tmp_path, default) -> None:
    """A cache folder that cannot be written changes no vector."""
    (tmp_path / "file").write_text("in the way")
    weights = find_weights(None, cache_folder=tmp_path / "file" / "cache")
    np.testing.assert_array_equal(
        Embedder(weights, device="cpu").embed(noise(3)), default.embed(noise(3))
    )


def test_of_a_users_own_onnx_nothing_is_kept(tmp_path) -> None:
    """Nothing is stored of an ONNX file that the user names."""
    path = tmp_path / "mine.onnx"
    path.write_bytes(package_file("osnet_x0_25_ours.onnx").read_bytes())
    Embedder(find_weights(str(path), cache_folder=tmp_path / "cache"), device="cpu")
    assert not (tmp_path / "cache").exists()


@given(st.integers(0, 200), st.integers(1, MAX_THREADS))
def test_a_batch_is_cut_into_equal_parts_for_all_threads(count, threads) -> None:
    """A batch is cut into parts of nearly equal size, a multiple of the threads."""
    sizes = np.diff(part_bounds(count, threads, SPLIT_CROPS))
    assert sizes.sum() == count
    if count:
        assert 1 <= sizes.min() <= sizes.max() <= min(SPLIT_CROPS, sizes.min() + 1)
        assert len(sizes) == count or len(sizes) % threads == 0


def test_threads_do_not_change_a_vector(exports) -> None:
    """Vectors are the same with one, two and five threads."""
    crops = noise(2 * BATCH_CROPS + 3)
    vectors = [
        Embedder(find_weights(None, cache_folder=exports), threads=n, device="cpu").embed(crops)
        for n in (1, 2, 5)
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-5)


def test_our_embeddings_equal_the_independent_reference(need_torch, shared, exports) -> None:
    """Our OSNet and an independent ONNX of the same weights agree on real people."""
    ours = Embedder(
        find_weights(str(shared / "models" / "osnet_x0_25_msmt17.pth"), cache_folder=exports)
    )
    reference = Embedder(
        find_weights(
            str(shared / "models" / "osnet_x0_25_msmt17.czqosu.onnx"), cache_folder=exports
        )
    )
    crops = people(shared)
    np.testing.assert_allclose(ours.embed(crops), reference.embed(crops), atol=1e-4)


def test_the_export_equals_eager_torch(need_torch, shared, exports) -> None:
    """The exported ONNX gives the vectors of eager torch."""
    from streamproc.networks.weights import read_checkpoint
    from streamproc.reid.osnet import from_state

    path = shared / "models" / "osnet_x0_25_msmt17.B.converted.pt"
    crops = people(shared, 8)
    with need_torch.inference_mode():
        eager = from_state(read_checkpoint(path))(need_torch.from_numpy(normalise(crops))).numpy()
    exported = Embedder(find_weights(str(path), cache_folder=exports))
    np.testing.assert_allclose(exported.embed(crops), unit(eager), atol=1e-5)


@pytest.mark.long
def test_the_committed_files_are_the_same_weights(need_torch, exports, default) -> None:
    """The package's safetensors and ONNX have one hash and give the same vectors."""
    path = package_file("osnet_x0_25_ours.safetensors")
    exported = Embedder(find_weights(str(path), cache_folder=exports))
    assert exported.weights_sha256 == default.weights_sha256, (
        "an export carries the sha256 of what it was made from"
    )
    np.testing.assert_allclose(exported.embed(noise(4)), default.embed(noise(4)), atol=1e-5)


@pytest.mark.long
def test_an_export_is_made_once(need_torch, exports) -> None:
    """The same weights are exported once and found again."""
    path = package_file("osnet_x0_25_ours.safetensors")
    first = find_weights(str(path), cache_folder=exports).onnx_path
    made = first.stat().st_mtime_ns
    assert find_weights(str(path), cache_folder=exports).onnx_path == first
    assert first.stat().st_mtime_ns == made
    # Beside it may lie what onnxruntime made of it for other tests; other weights have other names.
    made_of_it = [one for one in exports.glob(f"{sha256_of(path)}*") if ".ort-" not in one.name]
    assert made_of_it == [first]


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5])
def test_every_width_is_read_off_its_weights(need_torch, width) -> None:
    """The network's width is read from its weights, and it is in evaluation mode."""
    from streamproc.reid.osnet import OSNet, OSNetConfig, from_state

    config = OSNetConfig(tuple(int(c * width) for c in (64, 256, 384, 512)), 384)
    state = {f"module.{name}": value for name, value in OSNet(config).state_dict().items()}
    state["module.classifier.weight"] = need_torch.zeros(7, 384)
    model = from_state(state)
    assert model(need_torch.zeros(1, 3, 256, 128)).shape == (1, 384)
    assert not model.training


def test_weights_load_strictly(need_torch, shared) -> None:
    """Weights with a missing, a further, a misshapen or a foreign entry are refused."""
    from streamproc.networks.weights import read_checkpoint
    from streamproc.reid.osnet import from_state

    state = read_checkpoint(shared / "models" / "osnet_x0_25_msmt17.pth")
    for wrong in (
        {k: v for k, v in state.items() if k != "conv4.1.gate.fc1.bias"},
        state | {"conv2.0.IN.weight": need_torch.zeros(1)},
        state | {"conv4.1.gate.fc1.bias": need_torch.zeros(5)},
        {"backbone.x": need_torch.zeros(1)},
    ):
        with pytest.raises(WeightsError, match="expected"):
            from_state(wrong)


def test_negligible_weights_become_zero(need_torch, shared) -> None:
    """Weights so small that they slow arithmetic down become zero."""
    from streamproc.networks.weights import read_checkpoint
    from streamproc.reid.osnet import from_state

    def negligible(state):
        return sum(
            int(((t != 0) & (t.abs() < 1e-20)).sum())
            for t in state.values()
            if t.is_floating_point()
        )

    state = read_checkpoint(shared / "models" / "osnet_x0_25_msmt17.pth")
    assert negligible(state) > 500
    assert negligible(from_state(state).state_dict()) == 0


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.onnx", None, "expected a weights file, found none"),
        ("w.bin", b"x", "expected weights as"),
        ("w.onnx", b"not a network", "onnxruntime cannot load it"),
    ],
)
def test_bad_weights_are_one_line(tmp_path, name, content, text) -> None:
    """A weights file that cannot be used raises a WeightsError of one line."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=text) as caught:
        Embedder(find_weights(str(tmp_path / name), cache_folder=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_broken_checkpoint_is_one_line(need_torch, tmp_path, name) -> None:
    """A broken checkpoint raises a WeightsError of one line."""
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="cannot be read as weights") as caught:
        find_weights(str(tmp_path / name), cache_folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_carries_code_is_not_run(need_torch, tmp_path) -> None:
    """A checkpoint that carries code is refused, and nothing is run."""
    import os

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was-run'}",)

    need_torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        find_weights(str(tmp_path / "evil.pth"), cache_folder=tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_another_network_is_refused(shared, tmp_path) -> None:
    """An ONNX network that is no re-identification network is refused."""
    with pytest.raises(WeightsError, match="expected one input"):
        Embedder(find_weights(str(shared / "models" / "yolox_nano.onnx"), cache_folder=tmp_path))


def test_without_torch_a_checkpoint_names_the_extra(tmp_path, monkeypatch) -> None:
    """Without torch a checkpoint is refused with the extra to install."""
    monkeypatch.setattr("streamproc.networks.weights.find_spec", lambda _: None)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"install streamproc\[gpu\]"):
        find_weights(str(tmp_path / "w.pth"), cache_folder=tmp_path)


def test_embedding_never_imports_torch(exports) -> None:
    """A process that embeds with the default weights does not import torch."""
    done = run_program("embed_one_crop.py", exports)
    assert done.stdout == "False\n", done.stderr


def test_normalising_is_imagenets_mean_and_std() -> None:
    """Pixels are scaled to 1 and normalised by ImageNet's mean and deviation."""
    pixels = noise(2)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalise(pixels), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_a_persons_vector_is_the_unit_mean_of_unit_vectors() -> None:
    """A person's vector is the mean of its crops' vectors, scaled to length 1."""
    np.testing.assert_allclose(
        person_vector(np.eye(2, dtype=np.float32)), [0.5**0.5] * 2, atol=1e-7
    )


@pytest.mark.parametrize(("threads", "waits"), [(2, False), (1, True)])
def test_what_is_submitted_next_need_not_wait_for_what_runs_in_the_background(
    threads, waits, tmp_path
) -> None:
    """A batch in the background delays the next one only where the network has one thread."""
    embedder = Embedder(find_weights(None, cache_folder=tmp_path), threads=threads)
    pixels = noise(3)
    go_on = threading.Event()
    was_background_done = []

    def made_late():
        assert go_on.wait(60)
        return pixels

    def made_next():
        was_background_done.append(background.done())
        return pixels

    background = embedder.submit(made_late, background=True)
    following = embedder.submit(made_next)
    if not waits:
        following.result(60)
        assert not background.done()
    go_on.set()
    np.testing.assert_allclose(background.result(60), following.result(60), atol=1e-6)
    assert was_background_done == [waits]


def test_the_callers_arithmetic_keeps_its_denormals(default) -> None:
    """Embedding does not make denormal numbers zero in the caller's thread."""
    default.embed(noise(1))
    assert np.float32(1e-40) * np.float32(1) > 0
