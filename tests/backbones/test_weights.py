"""torchvision's weights without torchvision: its addresses, its initial values, no import of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision

from segtrain.backbones.resnet import ResNet, from_torchvision
from segtrain.weights.torchvision_weights import FILES, SITE


def test_every_address_is_the_one_that_torchvision_knows() -> None:
    for (name, version), file in FILES.items():
        source = torchvision.models.get_model_weights(name)[version]
        assert source.url == f"{SITE}/{file}"


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_seed_starts_the_resnet_that_torchvision_starts(name: str) -> None:
    torch.manual_seed(3)
    expected = from_torchvision(getattr(torchvision.models, name)().state_dict())
    following = torch.rand(1)
    torch.manual_seed(3)
    ours = ResNet(name).state_dict()
    assert list(ours) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.items())
    assert torch.equal(torch.rand(1), following)  # and what is made next starts alike, too


@pytest.mark.slow  # tests/test_startup.py looks at the first step of a run in `make test`
def test_a_semantic_model_is_built_without_importing_torchvision() -> None:
    code = (
        "import sys, torch; from segtrain.config import instantiate; "
        "torch.set_default_device('meta'); "
        "[instantiate.build({'_target_': f'segtrain.models.{t}', **a}, 'model', num_classes=3)"
        " for t, a in (('deeplabv3plus.DeepLabV3Plus', {'backbone': 'resnet18'}),"
        " ('deeplabv3.DeepLabV3', {'backbone': 'resnet18'}), ('fcn.FCN', {}),"
        " ('semantic_fpn.SemanticFPN', {}), ('unet.UNet', {}), ('encnet.EncNet', {}),"
        " ('pspnet.PSPNet', {}), ('deeplab.DeepLab', {}), ('parsenet.ParseNet', {}),"
        " ('deconvnet.DeconvNet', {'code': 8}))]; "
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
