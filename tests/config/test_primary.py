"""`--config-name`: a file of the user's own in place of conf/train.yaml, as in Hydra."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from commandline import done, refused

from segtrain.config.compose import check, compose_config
from segtrain.config.jobs import expand
from segtrain.config.schema import CONF_DIR
from segtrain.errors import UserError

ON_OURS = """
defaults:
  - train
  - override /model: pspnet
  - override /dataset: voc
train: {steps: 7}
optimizer: {lr: 0.5}
hydra: {run: {dir: my/place}}
"""
WHOLE = """
defaults:
  - metric: semantic
  - writer: []
  - dataset: voc
  - loss: pixel
  - inference: whole
  - augment: standard
  - model: pspnet
  - optimizer: adamw
  - schedule: poly
  - _self_
train: {steps: 9, batch_size: 4}
"""
FILES = {
    "my_run.yaml": ON_OURS,
    "longer.yaml": "defaults: [my_run]\ntrain: {seed: 5}\n",
    "whole.yaml": WHOLE,
    "copy.yaml": (CONF_DIR / "train.yaml").read_text(),
    "model/mine.yaml": "defaults: [unet_32, _self_]\nwidth: 16\n",
    "logging.yaml": "defaults: [train]\nhydra: {job_logging: {root: {level: DEBUG}}}\n",
    "plain.yaml": "train: {steps: 7}\n",
    "placed.yaml": "# @package hydra.callbacks\ndefaults: [train]\nx: 1\n",
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own folder of configs."""
    for name, content in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "mine"


def composed(mine: Path, name: str, *words: str) -> dict[str, Any]:
    """What a run of `--config-name NAME` is, in short."""
    cfg, folder = compose_config(words, [mine], name)
    run = check(cfg)
    return {
        "recipe": run.recipe,
        "model": run.model["_target_"].rpartition(".")[2],
        "dataset": run.dataset["_target_"].rpartition(".")[2],
        "numbers": (run.train.steps, run.train.seed, run.train.batch_size, run.optimizer["lr"]),
        "folder": re.sub(r"/[-\d_]+$", "", str(folder)),
    }


def test_a_config_of_ones_own_stands_on_ours_and_on_the_recipe_of_its_model(mine: Path) -> None:
    short = {"recipe": "pspnet101_voc", "model": "PSPNet", "dataset": "VOC", "folder": "my/place"}
    assert composed(mine, "my_run") == {**short, "numbers": (7, 0, 16, 0.5)}
    assert composed(mine, "longer.yaml", "train.steps=3") == {**short, "numbers": (3, 5, 16, 0.5)}
    other = composed(mine, "my_run", "model=mine")
    assert (other["recipe"], other["model"], other["numbers"]) == (None, "UNet", (7, 0, 16, 0.5))


def test_a_config_that_lists_every_part_is_whole(mine: Path) -> None:
    assert composed(mine, "whole", "optimizer.lr=0.25") == {
        "recipe": None,
        "model": "PSPNet",
        "dataset": "VOC",
        "numbers": (9, 0, 4, 0.25),
        "folder": "outputs/voc/pspnet",
    }
    copy = composed(mine, "copy", "train.seed=1")
    assert copy == composed(mine, "train", "train.seed=1")


def test_the_jobs_of_a_sweep_stand_on_it(mine: Path) -> None:
    jobs = expand(["train.seed=1,2"], [mine], "my_run").jobs
    assert [(check(j.cfg).train.seed, check(j.cfg).train.steps) for j in jobs] == [(1, 7), (2, 7)]
    assert jobs[0].folder == Path("outputs/sweep/voc_pspnet/train.seed=1").absolute()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_ran", "no such config; there are train, .*my_run.*Did you mean `my_run`"),
        ("experiment/x", "choose it as experiment=x"),
        ("logging", "logging.yaml: sets hydra.job_logging.root.level; of Hydra's own settings"),
        ("plain", r"plain.yaml: has no defaults list; .* defaults: \[train\]"),
        ("placed", "placed.yaml: its package is hydra.callbacks"),
    ],
)
def test_what_cannot_stand_for_the_whole_is_one_line(mine: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        compose_config([], [mine], name)
    assert "\n" not in str(told.value)


def test_on_the_command_line_it_is_a_flag(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--config-name", "my_run", "train.seed=4", "--cfg", "job", "--config-dir=mine")
    shown = done("segtrain", *words)
    assert "\n  steps: 7\n" in shown
    assert "\n  seed: 4\n" in shown
    assert shown == done("segtrain", "-cd", "mine", "-cn=my_run", "train.seed=4", "-c", "job")
    refused(2, ["--config-name", "--config-dir FOLDER"], "segtrain", "--config-name=my_run")
    refused(2, ["--config-path", "--config-dir mine"], "segtrain", "--config-path", "mine")
    refused(2, ["resume=", "--config-name"], "segtrain", "resume=x", "--config-name", "my_run")
