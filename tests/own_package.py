"""A researcher's package `mylab` with a part of its own for most groups, written to a folder and
installed.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from segtrain.config import trust


def on_page() -> dict[str, str]:
    """Return the files of the package that docs/adding.md builds, block by block."""
    page = Path(__file__).resolve().parent.parent / "docs" / "adding.md"
    text = page.read_text(encoding="utf-8")
    block = r"^`(mylab/[\w/.]+|pyproject\.toml)`:\n\n```\w+\n(.*?)^```$"
    return dict(re.findall(block, text, re.M | re.S))


FILES = {
    "pyproject.toml": on_page()["pyproject.toml"],
    "mylab/__init__.py": "",
    "mylab/parts.py": """
from dataclasses import replace
from pathlib import Path
from torch import nn
from segtrain.datasets.shapes import Shapes
from segtrain.layers.preprocess import Preprocess
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.metrics import confusion
from segtrain.models.base import SegmentationModel
class MyNet(SegmentationModel):
    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.preprocess = Preprocess([127.0] * 3, [64.0] * 3)
        self.backbone = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(width, num_classes, 1)
    def forward(self, batch):
        x = self.preprocess(batch.images, batch.sizes)
        return {"logits": self.head(self.backbone(x).relu())}
class Bright(Shapes):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return replace(sample, image=255 - sample.image)
class MyLoss(PixelCrossEntropy):
    def __init__(self, factor: float):
        super().__init__({"seg": factor})
class Errors(confusion.SemanticEvaluator):
    def names(self):
        return [*super().names(), "error"]
    def compute(self):
        numbers = super().compute()
        return {**numbers, "error": 1 - numbers["pixAcc"]}
class Darker:
    def __init__(self, factor: float = 0.5):
        self.factor = factor
    def __call__(self, sample, seed):
        return replace(sample, image=(sample.image * self.factor).astype("uint8"))
class Lines:
    def __init__(self, folder: Path, start: int, name: str = "lines.txt"):
        self.file = folder / name
    def scalars(self, step, values):
        with self.file.open("a") as file:
            file.write(f"{step} {' '.join(values)}\\n")
    def image(self, step, name, picture): ...
    def close(self): ...
""",
    "mylab/conf/model/mynet.yaml": "_target_: mylab.parts.MyNet\nwidth: 8\n",
    "mylab/conf/dataset/bright.yaml": "defaults: [shapes, _self_]\n_target_: mylab.parts.Bright\n",
    "mylab/conf/loss/myloss.yaml": "_target_: mylab.parts.MyLoss\nfactor: 2.0\n",
    "mylab/conf/metric/errors.yaml": "defaults: [semantic, _self_]\n_target_: mylab.parts.Errors\n",
    "mylab/conf/augment/darker.yaml": "_target_: mylab.parts.Darker\n",
    "mylab/conf/writer/lines.yaml": "lines:\n  _target_: mylab.parts.Lines\n",
}
# What a run of `mylab` is asked for: a part of each group, small enough for a test.
CHOICES = [
    "model=mynet",
    "dataset=bright",
    "loss=myloss",
    "metric=errors",
    "augment=darker",
    "writer=[lines]",
]
SMALL = [
    "dataset.size=[32,48]",
    "dataset.train=8",
    "dataset.val=3",
    "train.steps=4",
    "train.batch_size=4",
    "train.eval_every=2",
    "train.precision=fp32",
    "train.device=cpu",
    "train.verify=false",
    "log.every=1",
    "log.images=1",
]


def lines() -> int:
    """Count the lines of the whole package that are not empty."""
    return sum(line != "" for text in FILES.values() for line in text.splitlines())


def write(project: Path, files: Mapping[str, str] = FILES) -> Path:
    """Write the project's files below `project`."""
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    return project


def installed(folder: Path, files: Mapping[str, str] = FILES) -> Path:
    """Return a folder for `sys.path` with `mylab` as pip leaves it there, made without pip."""
    write(folder, files)
    (folder / "pyproject.toml").unlink(missing_ok=True)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return registered(folder, {"RECORD": "".join(f"{name},,\n" for name in sorted(names))})


@contextmanager
def importable(folder: Path) -> Iterator[Path]:
    """Put `folder` on the `sys.path` of this process, and leave no trace of `mylab` behind."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    trust.may_be_trusted.cache_clear()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
            del sys.modules[name]
        trust.may_be_trusted.cache_clear()


def registered(folder: Path, files: Mapping[str, str]) -> Path:
    """Add what pip writes about an installed `mylab` to `folder`."""
    info = folder / "mylab-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\n")
    for name, text in files.items():
        (info / name).write_text(text)
    return folder


def pip_installed(project: Path, target: Path) -> Path:
    """Install `project` with pip into the folder `target`, offline."""
    start = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    start += ["--disable-pip-version-check", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*start, str(project)], check=True, capture_output=True, timeout=300)
    return target
