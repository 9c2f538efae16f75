"""torchvision's ImageNet weights: from torch's cache or, failing that, the network.

The addresses are written down here because importing torchvision takes seconds.
"""

from __future__ import annotations

import os
import socket

import torch
from torch import Tensor

from segtrain.errors import UserError

# torch.hub sets no timeout: a network that does not answer would hang for minutes.
DOWNLOAD_SILENCE_S = 20.0
SITE = "https://download.pytorch.org/models"
# (classifier, torchvision's name of the version) -> file. The file's name ends in its hash.
FILES = {
    ("alexnet", "IMAGENET1K_V1"): "alexnet-owt-7be5be79.pth",
    ("googlenet", "IMAGENET1K_V1"): "googlenet-1378be20.pth",
    ("mobilenet_v2", "IMAGENET1K_V1"): "mobilenet_v2-b0353104.pth",
    ("resnet18", "IMAGENET1K_V1"): "resnet18-f37072fd.pth",
    ("resnet34", "IMAGENET1K_V1"): "resnet34-b627a593.pth",
    ("resnet50", "IMAGENET1K_V1"): "resnet50-0676ba61.pth",
    ("resnet101", "IMAGENET1K_V1"): "resnet101-63fe2227.pth",
    ("resnet152", "IMAGENET1K_V1"): "resnet152-394f9c45.pth",
    ("resnext101_32x8d", "IMAGENET1K_V1"): "resnext101_32x8d-8ba56ff5.pth",
    ("resnext101_64x4d", "IMAGENET1K_V1"): "resnext101_64x4d-173b62eb.pth",
    ("vgg11", "IMAGENET1K_V1"): "vgg11-8a719046.pth",
    ("vgg13", "IMAGENET1K_V1"): "vgg13-19584684.pth",
    ("vgg16", "IMAGENET1K_V1"): "vgg16-397923af.pth",
    ("vgg16", "IMAGENET1K_FEATURES"): "vgg16_features-amdegroot-88682ab5.pth",
    ("vgg11_bn", "IMAGENET1K_V1"): "vgg11_bn-6002323d.pth",
    ("vgg13_bn", "IMAGENET1K_V1"): "vgg13_bn-abd245e5.pth",
    ("vgg16_bn", "IMAGENET1K_V1"): "vgg16_bn-6c64b313.pth",
}


def download(name: str, version: str = "IMAGENET1K_V1") -> dict[str, Tensor]:
    """Return the state dict of torchvision's classifier `name`.

    Errors: one clear UserError when neither cache nor network has it.
    """
    url = f"{SITE}/{FILES[name, version]}"
    cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SILENCE_S)
    try:
        return torch.hub.load_state_dict_from_url(
            url, progress=False, check_hash=True, weights_only=True
        )
    # No network, no right to write, a cut file: all are the user's to solve, in one line.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise UserError(
            f"no ImageNet weights for {name}: {url} -> {cached} failed ({type(error).__name__}: "
            f"{reason}). Put the file there (TORCH_HOME moves the folder; delete a damaged one), "
            f"or start from scratch with model.weights=null"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
