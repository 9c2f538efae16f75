"""A file with folded batch norms becomes one with statistics, by torchvision's names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from segtrain.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "unfold_batch_norm.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unfold_batch_norm", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 64 + 16 * n, 3), np.uint8)).save(
            folder / f"{n}.png"
        )
    return folder


def classifier(path: Path) -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(num_classes=7).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.5)
    torch.save(network.state_dict(), path)
    return network


def test_torchvision_gets_the_same_outputs_from_a_file_with_statistics(
    script: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = classifier(tmp_path / "folded.pth")
    out = tmp_path / "unfolded.pth"
    script.main([str(tmp_path / "folded.pth"), str(images), str(out)])
    assert "52 batch norms, statistics of 3 images" in capsys.readouterr().out
    after = torchvision.models.mobilenet_v2(num_classes=7).eval()
    after.load_state_dict(torch.load(out, weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = before(x)
        assert (after(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert after.features[5].conv[0][1].running_mean.abs().max() > 0.01
    assert after.features[5].conv[0][1].running_var.min() != 1


def test_what_cannot_be_done_is_said_in_a_line(
    script: ModuleType, images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "folded.pth"
    classifier(file)
    out = str(tmp_path / "out.pth")
    with pytest.raises(UserError, match="0 images"):
        script.main([str(file), str(tmp_path / "nowhere"), out])
    trained = torch.load(file, weights_only=True)
    for name, value in trained.items():
        if name.endswith("running_var"):
            value.fill_(0.5)
    torch.save(trained, tmp_path / "trained.pth")
    with pytest.raises(UserError, match="hold statistics; nothing to do"):
        script.main([str(tmp_path / "trained.pth"), str(images), out])
    assert not Path(out).exists()
