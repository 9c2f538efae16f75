"""The architecture is a test: layers, homes of outside libraries, forbidden calls and sizes.

The rules are in tests/architecture.py. Each proves here on planted sources that it finds what it is for and leaves its
near misses alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from architecture import (
    EXCEPTIONS,
    Module,
    annotations,
    forbidden,
    homes,
    inheritance,
    layers,
    lazy_commands,
    machine_paths,
    own_bases,
    sizes,
)

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[Module], list[str]]


def package() -> list[Module]:
    files = sorted((ROOT / "segtrain").rglob("*.py"))
    return [Module(".".join(f.relative_to(ROOT / "segtrain").with_suffix("").parts), f.read_text()) for f in files]


def python_files() -> list[Module]:
    files = [f for folder in ("tests", "scripts") for f in sorted((ROOT / folder).rglob("*.py"))]
    return [*package(), *(Module(str(f.relative_to(ROOT)), f.read_text()) for f in files)]


def text_files() -> list[Module]:
    kinds = {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".json", ""}
    folders = ("segtrain", "conf", "tests", "scripts", "docs", ".ci")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in kinds]
    files += [f for f in ROOT.iterdir() if f.suffix in kinds and f.name != ".git"]
    return [Module(str(f.relative_to(ROOT)), f.read_text()) for f in files if f.is_file()]


@pytest.mark.parametrize("rule", [layers, lazy_commands, homes, forbidden, annotations])
def test_the_package_keeps(rule: Rule) -> None:
    modules = package()
    assert len(modules) > 8
    assert [violation for module in modules for violation in rule(module)] == []


def test_files_functions_and_constructors_are_small() -> None:
    scripts = [
        module for module in python_files() if not module.name.startswith("tests/")
    ]  # a table of cases may be long
    assert [violation for module in scripts for violation in sizes(module)] == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert [violation for module in text_files() for violation in machine_paths(module)] == []


def test_inheritance_from_own_classes_is_one_level_deep() -> None:
    assert inheritance(package()) == []


def test_every_exception_still_exists() -> None:
    classes = own_bases(package())
    names = {module.name for module in package()} | {":".join(name.rsplit(".", 1)) for name in classes}
    assert set(EXCEPTIONS) <= names


LONG = "\n".join(["def f() -> None:"] + ["    pass"] * 50)
NINE = ", ".join(f"a{i}: int" for i in range(9))
PLANTED = [
    (layers, "losses.pixel", "from segtrain.models.fcn import FCN"),
    (layers, "losses.pixel", "def f() -> None:\n    from segtrain import metrics"),
    (layers, "losses.pixel", "from ..models import fcn"),
    (layers, "losses.__init__", "from ..models import fcn"),
    (layers, "losses.pixel", "import importlib\nimportlib.import_module('segtrain.models')"),
    (layers, "backbones.vgg", "import segtrain.models.fcn"),
    (layers, "contracts", "from segtrain.optim import sgd"),
    (layers, "config", "from segtrain.contracts import Batch"),
    (layers, "build", "from segtrain.checkpoint import save"),
    (layers, "evaluate", "from segtrain.guard import Signals"),
    (layers, "guard", "from segtrain.checkpoint import save"),
    (layers, "checkpoint", "from segtrain.train import fit"),
    (layers, "train", "from segtrain import cli"),
    (layers, "metrics.coco", "import segtrain"),
    (layers, "helpers", "import numpy"),
    (lazy_commands, "cli", "import torch"),
    (lazy_commands, "__init__", "from segtrain.train import fit"),
    (homes, "train", "import hydra"),
    (homes, "checkpoint", "from omegaconf import OmegaConf"),
    (homes, "datasets.voc", "import cv2"),
    (homes, "datasets.loader", "def f() -> None:\n    import albumentations as A"),
    (homes, "metrics.coco", "from PIL import Image"),
    (homes, "train", "from torch.utils.tensorboard import SummaryWriter"),
    (homes, "train", "import torch\ntorch.distributed.barrier()"),
    (homes, "train", "from torch import distributed"),
    (homes, "rng", "import torch"),
    (homes, "preprocess", "import torchvision"),
    (forbidden, "checkpoint", "import torch\ntorch.load('x')"),
    (forbidden, "checkpoint", "import torch\ntorch.load('x', weights_only=False)"),
    (forbidden, "checkpoint", "from torch import load\nload('x')"),
    (forbidden, "cli", "from hydra.utils import instantiate"),
    (forbidden, "cli", "import hydra\nhydra.utils.instantiate({})"),
    (forbidden, "dist", "import pickle"),
    (forbidden, "dist", "def f() -> None:\n    from pickle import loads"),
    (forbidden, "config", "eval('1')"),
    (forbidden, "config", "exec('1')"),
    (forbidden, "log", "import subprocess\nsubprocess.run('ls', shell=True)"),
    (forbidden, "config", "import yaml\nyaml.load('a')"),
    (forbidden, "datasets.io", "import numpy as np\nnp.load('a', allow_pickle=True)"),
    (sizes, "train", "x = 1\n" * 401),
    (sizes, "train", LONG),
    (sizes, "models.unet", f"class FCN:\n    def __init__(self, {NINE}) -> None:\n        pass"),
    (annotations, "optim", "def f(x) -> None:\n    pass"),
    (annotations, "optim", "def f(*x) -> None:\n    pass"),
    (annotations, "optim", "def f(x: int):\n    pass"),
    (machine_paths, "conf/a.yaml", "root: /ho" + "me/me/data"),
    (machine_paths, "conf/a.yaml", 'root: "/wo' + 'rk/data"'),
]
FINE = [
    (layers, "models.fcn", "from segtrain.backbones.vgg import VGG\nfrom segtrain.models.layers import Head"),
    (layers, "models.fcn", "from ..contracts import Batch\nfrom .layers import Head\nfrom . import aspp"),
    (layers, "models.__init__", "from .fcn import FCN"),
    (layers, "evaluate", "from segtrain import build, checkpoint, dist, weights"),
    (layers, "train", "from segtrain.evaluate import evaluate\nfrom segtrain import guard"),
    (lazy_commands, "cli", "from segtrain.config import compose\ndef f() -> None:\n    import torch"),
    (lazy_commands, "cli", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    (homes, "datasets.transforms", "import cv2\nimport albumentations"),
    (homes, "dist", "import torch.distributed as td\nfrom torch import distributed"),
    (homes, "preprocess", "import torch\nimport numpy\nimport dataclasses"),
    (forbidden, "checkpoint", "import torch\ntorch.load('x', map_location='cpu', weights_only=True)"),
    (forbidden, "evaluate", "model.eval()"),
    (forbidden, "config", "import yaml\nyaml.safe_load('a')"),
    (sizes, "train", "x = 1\n" * 400),
    (sizes, "train", "\n".join(LONG.splitlines()[:50])),
    (annotations, "optim", "def f(x: int, *y: int, **z: int) -> None:\n    pass"),
    (machine_paths, "conf/a.yaml", "root: data/wo" + "rk/x and ${x}/ro" + "ot/y"),
]


@pytest.mark.parametrize(("rule", "name", "source"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source)) != []


@pytest.mark.parametrize(("rule", "name", "source"), FINE)
def test_a_near_miss_is_left_alone(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source)) == []


def test_inheritance_finds_a_grandchild_of_our_own() -> None:
    a = Module("models.a", "import torch\nclass A(torch.nn.Module):\n    pass")
    b = Module("models.b", "from segtrain.models.a import A\nclass B(A):\n    pass")
    c = Module("models.c", "from .b import B\nclass C(B):\n    pass")
    assert inheritance([a, b]) == []
    assert inheritance([a, b, c]) == ["models.c.C < models.b.B < models.a.A"]
