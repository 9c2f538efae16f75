"""torchvision's ImageNet weights: from torch's cache or, failing that, the network."""

from __future__ import annotations

import os
import socket

import torch
import torchvision
from torch import Tensor

from segtrain.errors import UserError

DOWNLOAD_SILENCE_S = 20.0


def download(name: str, version: str = "IMAGENET1K_V1") -> dict[str, Tensor]:
    """The state dict of torchvision's classifier `name`; one clear UserError when neither cache nor network has it."""
    source = torchvision.models.get_model_weights(name)[version]
    cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(source.url))
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(
        DOWNLOAD_SILENCE_S
    )  # torch.hub sets none: a dead network would hang for minutes
    try:
        return source.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no right to write, a cut file: all are the user's to solve, in one line
        raise UserError(
            f"no ImageNet weights for {name}: {source.url} -> {cached} failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Put the file there (TORCH_HOME moves the "
            f"folder; delete a damaged one), or start from scratch with model.weights=null"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
