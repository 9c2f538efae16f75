"""Run folders as `segtrain` leaves them before the first step, and what two runs must share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from segtrain.config.compose import compose_config
from segtrain.config.files import masked_container, to_yaml

BASE = [
    "optimizer=sgd",
    "optimizer.lr=0.05",
    "optimizer.weight_decay=0",
    "train.precision=fp32",
    "train.batch_size=8",
    "train.steps=20",
    "train.eval_every=10",
    "train.save_every=1",
    "train.keep=50",
    "train.channels_last=false",
    "train.threads=1",
    "log.every=1",
    "writer=[]",
    "log.progress=false",
    "log.images=1",
]


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder as `segtrain` would leave it before the first step."""
    cfg, _ = compose_config([*BASE, *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(masked_container(cfg)))
    return folder


def assert_same_bits(a: object, b: object) -> None:
    """Equal structure, equal tensors to the last bit."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_bits(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for left, right in zip(a, b, strict=True):
            assert_same_bits(left, right)
    else:
        assert a == b


def digest(value: object) -> str:
    """sha256 over the bits of all tensors and values, in order."""
    whole = hashlib.sha256()

    def add(item: object) -> None:
        if isinstance(item, torch.Tensor):
            whole.update(f"{item.dtype}{tuple(item.shape)}".encode())
            whole.update(item.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key, each in item.items():
                whole.update(repr(key).encode())
                add(each)
        elif isinstance(item, (list, tuple)):
            for each in item:
                add(each)
        else:
            whole.update(repr(item).encode())

    add(value)
    return whole.hexdigest()
