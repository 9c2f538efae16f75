"""The architecture is a test: layers, homes of outside libraries, forbidden calls.

The rules are in tests/architecture.py. Each proves here on planted sources that it finds what it is
for and leaves its near misses alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from architecture import (
    ALLOWED,
    Module,
    annotations,
    crowded_lines,
    empty_docstrings,
    forbidden,
    homes,
    inheritance,
    layers,
    lazy_commands,
    literal_attributes,
    machine_paths,
    repeated_names,
    task_questions,
    unformatted,
    untyped_factories,
    upward,
)

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[Module], list[str]]


def package() -> list[Module]:
    files = sorted((ROOT / "segtrain").rglob("*.py"))
    return [
        Module(".".join(f.relative_to(ROOT / "segtrain").with_suffix("").parts), f.read_text())
        for f in files
    ]


def python_files() -> list[Module]:
    files = [f for folder in ("tests", "scripts") for f in sorted((ROOT / folder).rglob("*.py"))]
    return [*package(), *(Module(str(f.relative_to(ROOT)), f.read_text()) for f in files)]


def text_files() -> list[Module]:
    kinds = {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".json", ""}
    folders = ("segtrain", "conf", "tests", "scripts", "docs", ".ci")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in kinds]
    files += [f for f in ROOT.iterdir() if f.suffix in kinds and f.name != ".git"]
    return [Module(str(f.relative_to(ROOT)), f.read_text()) for f in files if f.is_file()]


RULES = [
    layers,
    lazy_commands,
    homes,
    forbidden,
    annotations,
    literal_attributes,
    task_questions,
    untyped_factories,
    empty_docstrings,
    crowded_lines,
    unformatted,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps(rule: Rule) -> None:
    modules = package()
    assert len(modules) > 8
    assert [violation for module in modules for violation in rule(module)] == []


def test_no_import_points_upward() -> None:
    assert upward(ALLOWED) == []
    assert upward({"low": set(), "high": {"low"}}) == []
    assert upward({"low": {"high"}, "high": {"low"}, "apart": set()}) == ["high", "low"]


def test_every_folder_says_what_it_is_for_and_what_it_may_import() -> None:
    folders = [f for f in (ROOT / "segtrain").iterdir() if f.is_dir() and list(f.glob("*.py"))]
    assert len(folders) > 15
    for folder in folders:
        text = (folder / "__init__.py").read_text()
        assert re.fullmatch(r'"""[A-Z][^\n]*\.\n\nMay import: [a-z, \n]+\.\n"""\n', text), folder


def test_six_modules_lie_directly_under_segtrain() -> None:
    names = {f.name for f in (ROOT / "segtrain").glob("*.py")}
    assert names == {
        f"{n}.py" for n in ("__init__", "__main__", "api", "contracts", "errors", "rng")
    }


def test_no_file_names_a_path_of_one_machine() -> None:
    assert [violation for module in text_files() for violation in machine_paths(module)] == []


def test_inheritance_from_own_classes_is_one_level_deep() -> None:
    assert inheritance(package()) == []


PLANTED = [
    (layers, "losses.pixel", "from segtrain.models.fcn import FCN"),
    (layers, "losses.pixel", "def f() -> None:\n    from segtrain import metrics"),
    (layers, "losses.pixel", "from ..models import fcn"),
    (layers, "losses.__init__", "from ..models import fcn"),
    (layers, "losses.pixel", "import importlib\nimportlib.import_module('segtrain.models')"),
    (layers, "backbones.vgg", "import segtrain.models.fcn"),
    (layers, "contracts", "from segtrain.optim.optimizers import sgd"),
    (layers, "layers.aspp", "from segtrain.backbones.vgg import VGG"),
    (layers, "config.parts", "from segtrain.checkpoints.writing import save"),
    (layers, "api", "from segtrain.commands.main import segtrain"),
    (layers, "runtime.signals", "from segtrain.checkpoints.writing import save"),
    (layers, "checkpoints.match", "from segtrain.engine.train import fit"),
    (layers, "engine.train", "from segtrain import commands"),
    (layers, "metrics.coco", "import segtrain"),
    (layers, "helpers", "import numpy"),
    (lazy_commands, "commands.main", "import torch"),
    (lazy_commands, "__init__", "from segtrain.engine.train import fit"),
    (homes, "engine.train", "import hydra"),
    (homes, "checkpoints.match", "from omegaconf import OmegaConf"),
    (homes, "datasets.voc", "import cv2"),
    (homes, "data.loader", "def f() -> None:\n    import albumentations as A"),
    (homes, "metrics.coco", "from PIL import Image"),
    (homes, "engine.train", "from torch.utils.tensorboard import SummaryWriter"),
    (homes, "engine.train", "import torch\ntorch.distributed.barrier()"),
    (homes, "engine.train", "from torch import distributed"),
    (lazy_commands, "rng", "import torch"),
    (lazy_commands, "config.schema", "def f() -> None:\n    pass\nimport segtrain.engine.train"),
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
    (forbidden, "data.images", "import numpy as np\nnp.load('a', allow_pickle=True)"),
    (literal_attributes, "engine.train", "getattr(x, 'files', None)"),
    (literal_attributes, "engine.train", "def f() -> None:\n    hasattr(model, 'no_sync')"),
    (task_questions, "inference.crf", "isinstance(x, Instances)"),
    (task_questions, "engine.train", "isinstance(x, np.ndarray | samples.Scene)"),
    (untyped_factories, "config.parts", "def model(node: int) -> Any:\n    pass"),
    (untyped_factories, "config.parts", "def model(node: int) -> typing.Any:\n    pass"),
    (empty_docstrings, "models.fcn", 'def f() -> None:\n    """See the class."""'),
    (empty_docstrings, "models.fcn", 'class A:\n    """As in `B`."""'),
    (crowded_lines, "models.fcn", "a, b = 1, 2"),
    (crowded_lines, "models.fcn", "def f() -> None:\n    self.a, self.b = a, [b]"),
    (unformatted, "models.fcn", "x = [1,\n     2]  # fmt" + ": skip"),
    (annotations, "optim", "def f(x) -> None:\n    pass"),
    (annotations, "optim", "def f(*x) -> None:\n    pass"),
    (annotations, "optim", "def f(x: int):\n    pass"),
    (machine_paths, "conf/a.yaml", "root: /ho" + "me/me/data"),
    (machine_paths, "conf/a.yaml", 'root: "/wo' + 'rk/data"'),
]
FINE = [
    (
        layers,
        "models.fcn",
        "from segtrain.backbones.vgg import VGG\nfrom segtrain.layers.blocks import Head",
    ),
    (
        layers,
        "models.fcn",
        "from ..contracts import Batch\nfrom .fcn import FCN\nfrom . import fcn",
    ),
    (layers, "models.__init__", "from .fcn import FCN"),
    (layers, "engine.evaluate", "from segtrain import checkpoints, config, runtime"),
    (layers, "engine.train", "from segtrain.engine.evaluate import evaluate"),
    (
        lazy_commands,
        "commands.main",
        "from segtrain.config.schema import compose\ndef f() -> None:\n    import torch",
    ),
    (
        lazy_commands,
        "commands.main",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ),
    (homes, "data.view", "import cv2"),
    (homes, "runtime.distributed", "import torch.distributed as td\nfrom torch import distributed"),
    (homes, "layers.preprocess", "import torch\nimport numpy\nimport dataclasses"),
    (
        forbidden,
        "checkpoint",
        "import torch\ntorch.load('x', map_location='cpu', weights_only=True)",
    ),
    (forbidden, "evaluate", "model.eval()"),
    (forbidden, "config", "import yaml\nyaml.safe_load('a')"),
    (literal_attributes, "engine.train", "getattr(conf, key)\nsetattr(a, f'x{i}', 1)"),
    (literal_attributes, "engine.train", "getattr(made, '__module__')"),
    (task_questions, "metrics.coco", "isinstance(x, Instances)"),
    (task_questions, "inference.crf", "isinstance(x, Path)"),
    (untyped_factories, "config.parts", "def model(node: Any) -> Model:\n    pass"),
    (untyped_factories, "config.instantiate", "def build(node: Any) -> Any:\n    pass"),
    (empty_docstrings, "models.fcn", 'def f() -> None:\n    """Return x. See `g`."""'),
    (crowded_lines, "models.fcn", "a, b = b, a\nc, d = f()\nfor i, j in x:\n    pass"),
    (annotations, "optim", "def f(x: int, *y: int, **z: int) -> None:\n    pass"),
    (machine_paths, "conf/a.yaml", "root: data/wo" + "rk/x and ${x}/ro" + "ot/y"),
]


@pytest.mark.parametrize(("rule", "name", "source"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source)) != []


@pytest.mark.parametrize(("rule", "name", "source"), FINE)
def test_a_near_miss_is_left_alone(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source)) == []


def test_two_modules_of_one_name_are_found_unless_they_share_their_subject() -> None:
    names = ["data.tiles", "inference.tiles", "engine.train", "commands.train", "losses.__init__"]
    modules = [Module(name, "") for name in names]
    assert repeated_names(modules) == ["tiles: data.tiles, inference.tiles"]
    assert repeated_names(package()) == []


def test_inheritance_finds_a_grandchild_of_our_own() -> None:
    a = Module("models.a", "import torch\nclass A(torch.nn.Module):\n    pass")
    b = Module("models.b", "from segtrain.models.a import A\nclass B(A):\n    pass")
    c = Module("models.c", "from .b import B\nclass C(B):\n    pass")
    assert inheritance([a, b]) == []
    assert inheritance([a, b, c]) == ["models.c.C < models.b.B < models.a.A"]
