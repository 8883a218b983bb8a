"""The detector's training script: what it learns, and that weights run as they were trained."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models" / "detector"))

from crops import LabelledCrops
from train import START, Training, loss_of

from streamproc.networks.person_network import PersonDetector, folded


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A tar of two pictures with a bright person each, and one box to be ignored."""
    path = tmp_path / "pictures.tar"
    labels = {}
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            pixels = np.full((200, 160, 3), 60, np.uint8)
            pixels[40:160, 50 + 20 * number : 100 + 20 * number] = 220
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            name = f"street_{number}.png"
            labels[name] = [[50 + 20 * number, 40, 100 + 20 * number, 160, 0.9, 0]]
            add(tar, name, buffer.getvalue())
        labels["street_0.png"].append([0, 0, 20, 40, 0.4, 1])
        add(tar, "labels.json", json.dumps(labels).encode())
    return path


def add(tar, name, content) -> None:
    """Put a file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_crops_keep_their_boxes_on_the_people(pictures) -> None:
    """Whatever a crop's scale, place and mirror image, a box to learn lies on bright pixels."""
    batches = iter(LabelledCrops(pictures, size=96, batch=8, seed=0))
    seen = 0
    for _ in range(4):
        crops, rows = next(batches)
        assert crops.shape == (8, 3, 96, 96)
        for crop, left, top, right, bottom, _, ignored in rows.tolist():
            box = crops[int(crop), :, int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            if not ignored and box.numel() > 300:
                seen += 1
                assert box.float().mean() > crops[int(crop)].float().mean()
    assert seen > 10


@pytest.mark.long
def test_training_lowers_the_loss_and_goes_on_where_it_stopped(pictures, tmp_path) -> None:
    """From the committed weights some steps on the same crops lower their loss; all is saved."""
    torch.manual_seed(0)
    crops, labels = next(iter(LabelledCrops(pictures, size=64, batch=2, seed=1)))
    training = Training(tmp_path, START, 1e-3)
    losses = [sum(training.learn(crops, labels, 1e-3).values()) for _ in range(4)]
    assert losses[-1] < losses[0]
    training.save()
    again = Training(tmp_path, None, 1e-3)
    assert again.step == 4
    for one, other in zip(again.network.parameters(), training.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_folded_weights_answer_as_those_with_batch_norms() -> None:
    """Export runs the same function that was trained, without its batch norms."""
    torch.manual_seed(0)
    trained = PersonDetector().eval()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    images = torch.rand(1, 3, 96, 128) * 255
    with torch.no_grad():
        for one, other in zip(trained(images), folded(trained)(images), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_cells_in_a_box_to_be_ignored_count_for_nothing() -> None:
    """What may be a person is neither learned as one nor as background."""
    torch.manual_seed(0)
    network = PersonDetector().eval()
    levels = network.raw(torch.rand(1, 3, 96, 96) * 255)
    nobody = torch.zeros((0, 7))
    all_ignored = torch.tensor([[0.0, -1, -1, 97, 97, 0.5, 1]])
    assert loss_of(levels, nobody)["score"] > 0
    assert loss_of(levels, all_ignored)["score"] == 0
