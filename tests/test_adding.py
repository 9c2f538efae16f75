"""docs/adding.md says only what works: its blocks are a package that trains and is measured."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_package
import pytest
from commandline import done
from documents import is_name_of_segtrain
from PIL import Image

from segtrain.data.cache import Cached, build_cache
from segtrain.datasets.folder import Folder

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "adding.md").read_text(encoding="utf-8")
FILES = own_package.on_page()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
    for line in block.splitlines()
]
SMALL = [
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=2",
    "train.precision=fp32",
    "train.device=cpu",
    "log.every=1",
    "log.images=0",
    "dataset.count=4",
]


@pytest.fixture
def mylab(tmp_path: Path) -> Iterator[Path]:
    """The page's package, installed as pip leaves it, for one test."""
    files = {"mylab/__init__.py": "", **FILES}
    with own_package.importable(own_package.installed(tmp_path / "site", files)) as folder:
        yield folder


def test_the_blocks_of_the_page_are_six_parts_with_their_yaml_and_a_project() -> None:
    assert len(FILES) == 13
    assert "hatchling" in FILES["pyproject.toml"]  # it takes yaml files along, setuptools does not
    assert sum(name.endswith(".py") for name in FILES) == 6
    assert [words[0] for words in COMMANDS] == ["segtrain", "segtrain", "segeval", "segtrain"]


def test_the_parts_of_the_page_train_and_are_measured(mylab: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (words,) = [words for words in COMMANDS if "writer=[table]" in words]
    done(words[0], *words[1:], *SMALL, f"hydra.run.dir={run}")
    final = json.loads((run / "summary.json").read_text())["final"]
    assert final["error"] == pytest.approx(1 - final["pixAcc"])
    rows = [line.split("\t") for line in (run / "numbers.tsv").read_text().splitlines()]
    told = {name: float(value) for step, name, value in rows if step == "2"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 2 and line["phase"] == "train"]
    assert told["train/loss/brier"] == last["loss/brier"]
    assert 0 < last["loss/brier"] < 2  # of two classes: 0 for a sure hit, 2 for a sure mistake
    done("segeval", "--trust", "mylab", f"checkpoint={run}", "eval.worst=0")


def test_the_augmentation_of_the_page_reads_a_cached_set_too(mylab: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, shape in (("images", (70, 90, 3)), ("masks", (70, 90))):
        path = tmp_path / folder / "train" / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 2, shape, np.uint8)).save(path)
    labels = [{"id": 0, "name": "no"}, {"id": 1, "name": "yes"}]
    images = Folder(str(tmp_path), "train", labels=labels)
    build_cache(images, tmp_path / "cache")
    brightness = importlib.import_module("mylab.augments").Brightness()
    cached = brightness(Cached(images, tmp_path / "cache").lazy(0), 3)
    plain = brightness(images[0], 3)
    assert np.array_equal(cached.image, plain.image)
    assert np.array_equal(cached.mask, plain.mask)


def test_the_modules_that_the_page_names_exist() -> None:
    names = re.findall(r"^from (segtrain[\w.]*) import", PAGE, re.MULTILINE)
    assert len(names) > 8
    assert [name for name in names if not is_name_of_segtrain(name)] == []
