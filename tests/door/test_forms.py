"""What a user may type: text is what was typed, and what is not understood ends in one line.

Each text of `TEXTS` is given to every setting that takes text, alone and in a sweep; `VALUES` are
settings of other kinds, `REFUSED` what ends with 2 and names the right argument. What trains can be
resumed, measured, predicted with and loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from places import TINY, Places, assert_one_line
from warm import Ended, Warm

from segtrain.commands import arguments
from segtrain.config import jobs
from segtrain.config.compose import check, compose_config
from segtrain.config.files import load_run, load_yaml, masked_container, to_yaml
from segtrain.errors import UserError

HOME = "/nowhere/user"

# What is typed after `=` -> what is meant. None: the same, to the letter.
TEXTS: dict[str, str | None] = {
    # words and file names
    "plain": None,
    "outputs/first run/2": None,
    "/abs/path": None,
    "./here": None,
    "../beside": None,
    ".hidden": None,
    "a.b.c": None,
    "a:b": None,
    "a: b": None,
    "a;b": None,
    "a|b&c": None,
    "a*b?": None,
    "a!": None,
    "a@b": None,
    "a%20b": None,
    "a^b": None,
    "a`b": None,
    "a<b>": None,
    "a\\b": None,
    "a+b": None,
    "+a": None,
    "-a": None,
    "--a": None,
    "a=b": None,
    "a==b": None,
    "=a": None,
    "a#b": None,
    "#a": None,
    "a #b": None,
    "a$b": None,
    "$UNSET": None,
    "$HOME/x": None,
    "{UNSET}": None,
    "a~b": None,
    "a/~/b": None,
    # other people's letters
    "grün/straße": None,
    "Ünïcödé": None,
    "u\u0308ber": None,  # a letter and its dots apart
    "数据/训练": None,
    "данные": None,
    "🦊": None,
    # what YAML or Hydra would take for something else
    "2026_11_29": None,
    "2026-11-29": None,
    "20261129": None,
    "12:30:00": None,
    "1_000": None,
    "1e3": None,
    "1.0": None,
    "3.10": None,
    "007": None,
    "0x10": None,
    "0b1": None,
    "-1": None,
    "1,5": None,
    "true": None,
    "True": None,
    "yes": None,
    "off": None,
    "nan": None,
    "inf": None,
    ".5": None,
    "None": None,
    "nullx": None,
    "[a]": None,
    "[1,2]": None,
    "{a: 1}": None,
    "{a}": None,
    "(a)": None,
    "run(1)": None,
    "a(b": None,
    "a]b": None,
    "a,b": None,
    "choice(a,b)": None,
    "range(1,3)": None,
    "glob(*)": None,
    "!!python/name:os.system": None,
    "&a": None,
    "*a": None,
    "a ": None,
    " a": None,
    # quotes: one pair around the whole goes
    "it's": None,
    "'it": None,
    'a"b"c': None,
    "'a','b'": None,
    "'a b'": "a b",
    '"a b"': "a b",
    '"null"': "null",
    "'2026_11_29'": "2026_11_29",
    '"a,b"': "a,b",
    "'~/x'": None,  # see HOMES
    '" a "': " a ",
    '"it\'s"': "it's",
    "'[a]'": "[a]",
}
HOMES = {"~": HOME, "~/x": f"{HOME}/x", "~nobody-of-this-name/x": "~nobody-of-this-name/x"}
del TEXTS["'~/x'"]

# The settings of a run with `dataset=folder` that take text; those that also take null.
TEXT_KEYS = ("dataset.root", "dataset.images", "dataset.masks", "train.monitor")
TEXT_OR_NULL = ("train.init", "eval.output", "eval.submission", "dataset.cache", "dataset.lists")
KEYS = (*TEXT_KEYS, *TEXT_OR_NULL)
ARGUMENTS = ("resume", "checkpoint", "predictions", "input", "output")

QUICK = ("2026_11_29", "grün/straße", "$UNSET")


def stored(words: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """What a run of these settings stores as config.yaml, and its folder.

    It is read back from a file, and must be the run that the settings mean.
    """
    cfg, folder = compose_config(["dataset=folder", *words])
    with TemporaryDirectory() as spool:
        path = Path(spool, "config.yaml")
        path.write_text(to_yaml(masked_container(cfg)))
        assert load_run(path) == check(cfg)
        return load_yaml(path), folder


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def assert_text(typed: str, meant: str) -> None:
    """`typed` means `meant` wherever text is taken: in settings, folders and arguments."""
    words = [f"{key}={typed}" for key in KEYS]
    config, folder = stored([*words, f"hydra.run.dir={typed}"])
    assert {key: at(config, key) for key in KEYS} == dict.fromkeys(KEYS, meant)
    assert str(folder) == str(Path(meant))
    paths = [f"{name}={typed}" for name in ARGUMENTS]
    taken, left = arguments.take(paths, *ARGUMENTS)
    assert taken == dict.fromkeys(ARGUMENTS, meant)
    assert left == []


@pytest.mark.parametrize("typed", QUICK)
def test_text_is_what_was_typed(typed: str) -> None:
    assert_text(typed, TEXTS[typed] or typed)


@pytest.mark.slow
@pytest.mark.parametrize("typed", [text for text in TEXTS if text not in QUICK])
def test_every_text_is_what_was_typed(typed: str) -> None:
    assert_text(typed, TEXTS[typed] or typed)


def test_there_are_three_hundred_forms() -> None:
    texts = (len(TEXTS) + len(HOMES)) * (len(KEYS) + len(ARGUMENTS) + 1)
    assert texts + len(VALUES) + len(REFUSED) + len(SWEPT) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("typed", HOMES)
def test_a_leading_tilde_is_a_home(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    assert_text(typed, HOMES[typed])


@pytest.mark.slow
def test_null_is_nothing_where_nothing_is_allowed_and_text_elsewhere() -> None:
    config, _ = stored([f"{key}=null" for key in KEYS])
    assert [at(config, key) for key in TEXT_KEYS] == ["null"] * len(TEXT_KEYS)
    assert [at(config, key) for key in TEXT_OR_NULL] == [None] * len(TEXT_OR_NULL)


@pytest.mark.slow
def test_what_the_environment_names_is_stored_as_the_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATA", "/data of mine")
    config, folder = stored(["dataset.root=${oc.env:DATA}/x", "hydra.run.dir=${oc.env:DATA}/run"])
    assert at(config, "dataset.root") == "${oc.env:DATA}/x"
    assert folder == Path("/data of mine/run")
    cfg, _ = compose_config(["dataset=folder", "dataset.root=${oc.env:DATA}/x"])
    assert check(cfg).dataset["root"] == "/data of mine/x"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["${dataset.lists}", "${train.seed}/x"])
def test_a_reference_is_resolved(text: str) -> None:
    config, _ = stored(["dataset.lists=here", "train.seed=7", f"train.init={text}"])
    assert at(config, "train.init") == {"${dataset.lists}": "here"}.get(text, "7/x")


# ---------------------------------------------------------------------- other kinds of values

# What is typed -> key, value that is stored.
VALUES: dict[str, tuple[str, Any]] = {
    "train.steps=1000": ("train.steps", 1000),
    "train.steps=1_000": ("train.steps", 1000),
    "train.steps= 5": ("train.steps", 5),
    "train.seed=0": ("train.seed", 0),
    "++train.seed=3": ("train.seed", 3),
    "optimizer.lr=1": ("optimizer.lr", 1),
    "optimizer.lr=1e-3": ("optimizer.lr", 0.001),
    "optimizer.lr=.5": ("optimizer.lr", 0.5),
    "train.clip=2": ("train.clip", 2.0),
    "train.clip=null": ("train.clip", None),
    "train.ema=0.999": ("train.ema", 0.999),
    "train.workers=null": ("train.workers", None),
    "train.compile=true": ("train.compile", True),
    "log.progress=false": ("log.progress", False),
    "eval.flip=true": ("eval.flip", True),
    "eval.flip=null": ("eval.flip", None),
    "eval.scales=[0.5,1,1.5]": ("eval.scales", [0.5, 1.0, 1.5]),
    "eval.scales=[ 0.5, 1 ]": ("eval.scales", [0.5, 1.0]),
    "eval.scales=null": ("eval.scales", None),
    "dataset.crop=[128,256]": ("dataset.crop", [128, 256]),
    "dataset.labels=[{id: 0, name: road}, {id: 255, ignore: true}]": (
        "dataset.labels",
        [{"id": 0, "name": "road"}, {"id": 255, "ignore": True}],
    ),
    "dataset.labels=[{id: 0, name: 'a, b'}]": ("dataset.labels", [{"id": 0, "name": "a, b"}]),
    "dataset.labels=[{id: 0, name: straße}]": ("dataset.labels", [{"id": 0, "name": "straße"}]),
    "loss.class_weights=[1,2.5]": ("loss.class_weights", [1, 2.5]),
    "loss.weights={seg: 2}": ("loss.weights", {"seg": 2}),
    "model=unet": ("model._target_", "segtrain.models.unet.UNet"),
    "model='unet'": ("model._target_", "segtrain.models.unet.UNet"),
    "+model=unet": ("model._target_", "segtrain.models.unet.UNet"),
    "++model=unet": ("model._target_", "segtrain.models.unet.UNet"),
    "+model.norm=group": ("model.norm", "group"),
    "++model.norm=group": ("model.norm", "group"),
    "~model.weights": ("model._target_", "segtrain.models.deeplabv3plus.DeepLabV3Plus"),
    "~model.decoder": ("model.backbone", "resnet18"),
    "~optimizer.weight_decay": ("optimizer.lr", 0.001),
    "~dataset.cache": ("dataset.crop", [513, 513]),
    "+dataset.labels=[{id: 0, name: a}]": ("dataset.labels", [{"id": 0, "name": "a"}]),
    "model=[unet]": ("model._target_", "segtrain.models.unet.UNet"),
    "model.backbone=resnet34": ("model.backbone", "resnet34"),
    "model.backbone='resnet34'": ("model.backbone", "resnet34"),
    "model.decoder=[64,32]": ("model.decoder", [64, 32]),
    "model.decoder=[]": ("model.decoder", []),
    "writer=[]": ("writer", {}),
    "optimizer=sgd": ("optimizer._target_", "segtrain.optim.optimizers.sgd"),
    "experiment=null": ("train.seed", 0),
    "train.precision=fp32": ("train.precision", "fp32"),
    'train.precision="fp32"': ("train.precision", "fp32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("typed", VALUES)
def test_a_value_is_read_by_its_kind(typed: str) -> None:
    key, value = VALUES[typed]
    config, _ = stored([typed])
    assert at(config, key) == value
    assert type(at(config, key)) is type(value)


# ---------------------------------------------------------------------- with -m

# What is typed -> the texts it stands for.
SWEPT: dict[str, list[str]] = {
    "a,b": ["a", "b"],
    "a, b": ["a", "b"],
    "a": ["a"],
    "'a,b'": ["a,b"],
    '"a,b",c': ["a,b", "c"],
    "'a','b'": ["a", "b"],
    "it's,b": ["it's", "b"],
    "choice(a,b)": ["a", "b"],
    "choice('a,b',c)": ["a,b", "c"],
    "2026_11_29,2026_11_30": ["2026_11_29", "2026_11_30"],
    "1e3,0x10": ["1e3", "0x10"],
    "grün,数据": ["grün", "数据"],
    "a=b,c#d": ["a=b", "c#d"],
    "$UNSET,x": ["$UNSET", "x"],
    "[a,b],c": ["[a,b]", "c"],
    "{a: 1},{b: 2}": ["{a: 1}", "{b: 2}"],
    "true,null": ["true", "null"],
    "~/x,y": [f"{HOME}/x", "y"],
    "a/b,c/d": ["a/b", "c/d"],
    "x" * 300 + ",y": ["x" * 300, "y"],
    "run(1)": ["run(1)"],
    "f(x),g(y)": ["f(x)", "g(y)"],
}


@pytest.mark.slow
@pytest.mark.parametrize("typed", SWEPT)
def test_a_swept_text_is_what_was_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("PWD", "/")
    words = ["dataset=folder", f"dataset.images={typed}", "hydra.sweep.dir=out"]
    expanded = jobs.expand(words)
    values = [at(masked_container(job.cfg), "dataset.images") for job in expanded.jobs]
    assert values == SWEPT[typed]
    names = [job.folder.name for job in expanded.jobs]
    assert len(set(names)) == len(names)
    for job in expanded.jobs:
        assert job.folder.parent == Path("out").absolute()
        assert len(job.folder.name.encode()) <= 250
        assert job.folder.name.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("range(1,4)", [1, 2, 3]),
        ("range(0,10,5)", [0, 5]),
        ("1,2", [1, 2]),
        ("choice(1,5)", [1, 5]),
        ("7", [7]),
    ],
)
def test_a_swept_number_is_a_number(typed: str, values: list[int]) -> None:
    expanded = jobs.expand([f"train.seed={typed}"])
    assert [check(job.cfg).train.seed for job in expanded.jobs] == values


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for text in TEXTS if "," not in text])
def test_a_text_beside_a_sweep_is_what_was_typed(text: str) -> None:
    if text.startswith("choice(") or text in ("range(1,3)", "glob(*)"):
        pytest.skip("several values, or none")
    words = [f"{key}={text}" for key in KEYS]
    expanded = jobs.expand(["dataset=folder", *words, "train.seed=1,2", "hydra.sweep.dir=out"])
    assert len(expanded.jobs) == 2
    for job, seed in zip(expanded.jobs, "12", strict=True):
        config = masked_container(job.cfg)
        meant = (TEXTS[text] or text).strip() if TEXTS[text] is None else TEXTS[text]
        assert {key: at(config, key) for key in KEYS} == dict.fromkeys(KEYS, meant)
        assert job.folder.name.startswith(f"train.seed={seed}")
        assert len(job.folder.name.encode()) <= 250


@pytest.mark.slow
def test_a_sweep_of_folders_and_groups_has_a_folder_for_each() -> None:
    expanded = jobs.expand(
        [
            "model=unet,fcn",
            "optimizer.lr=0.1,0.01",
            *(f"eval.{k}=3" for k in ("worst", "processes")),
        ]
    )
    names = [job.folder.name for job in expanded.jobs]
    assert len(set(names)) == 4
    assert all(name.startswith("model=") for name in names)
    assert all("optimizer.lr=" in name for name in names)


# ---------------------------------------------------------------------- what is refused

# What is typed -> words of the one line.
REFUSED: dict[str, list[str]] = {
    # other programs' names
    "epochs=10": ["epochs", "train.steps="],
    "max_epochs=10": ["max_epochs", "train.steps="],
    "lr=0.01": ["lr", "optimizer.lr=0.01"],
    "learning_rate=0.01": ["learning_rate", "optimizer.lr=0.01"],
    "gpus=2": ["gpus", "train.processes=2"],
    "batch_size=8": ["batch_size", "train.batch_size=8"],
    "seed=3": ["seed", "train.seed=3"],
    "steps=5": ["steps", "train.steps=5"],
    "backbone=resnet50": ["backbone", "model.backbone=resnet50"],
    "data=x": ["data", "dataset"],
    "output=x": ["output", "hydra.run.dir=x"],
    "checkpoint=x": ["checkpoint", "train.init=x"],
    "train.lr=0.1": ["train.lr", "optimizer.lr=0.1"],
    "--lr 0.1": ["--lr", "optimizer.lr=0.1"],
    "--epochs 3": ["--epochs", "train.steps"],
    "--resume outputs/run": ["--resume", "resume=outputs/run"],
    "--resume=outputs/run": ["--resume", "resume=outputs/run"],
    "resume outputs/run": ["resume", "key=value"],
    "outputs/run": ["outputs/run", "resume=outputs/run"],
    "--model unet": ["--model", "model=unet"],
    "-x": ["-x", "no such flag"],
    # unknown keys
    "+foo=1": ["foo"],
    "++foo=1": ["foo"],
    "foo.bar=1": ["foo.bar"],
    "+train.foo=1": ["train.foo"],
    "++eval.scale=[1]": ["eval.scale", "eval.scales"],
    "+eval.scale=[1]": ["eval.scale", "eval.scales"],
    "eval.scale=[1]": ["eval.scale", "eval.scales"],
    "train.step=5": ["train.step", "train.steps"],
    "++train.step=5": ["train.step", "train.steps"],
    "modell=unet": ["modell", "model"],
    "model.outputstride=16": ["model.outputstride", "model.output_stride"],
    "+model.num_clases=3": ["model.num_clases"],
    "+model.num_classes=3": ["model.num_classes"],
    "+optimizer.momentum=0.9": ["optimizer.momentum"],
    "+dataset.rot=x": ["dataset.rot"],
    "train.steps.x=1": ["train.steps.x"],
    "version=1": ["version"],
    "trust=mylab": ["trust=mylab", "--trust PACKAGE"],
    "--trust": ["--trust", "PACKAGE"],
    # removal
    "~train": ["train"],
    "~model": ["model"],
    "~model=unet": ["model"],
    "~dataset": ["dataset"],
    "~optimizer": ["optimizer"],
    "~writer": ["writer"],
    "~train.steps": ["train.steps"],
    "~eval": ["eval"],
    "~foo": ["foo"],
    "~hydra.run.dir": ["hydra.run.dir"],
    # empty
    "train.steps=": ["train.steps"],
    "train.init=": ["train.init"],
    "train.init=''": ["train.init"],
    'train.init=""': ["train.init"],
    "train.init= ": ["train.init"],
    "dataset.cache=": ["dataset.cache"],
    "dataset=": ["dataset"],
    "model=": ["model"],
    "model=''": ["model"],
    "eval.output=": ["eval.output"],
    "hydra.run.dir=": ["hydra.run.dir"],
    "hydra.run.dir=''": ["hydra.run.dir"],
    "optimizer.lr=": ["optimizer.lr"],
    "eval.scales=": ["eval.scales"],
    "log.progress=": ["log.progress"],
    "resume=": ["resume="],
    "=5": ["=5"],
    # values of the wrong kind
    "train.steps=abc": ["train.steps", "abc"],
    "train.steps=1.5": ["train.steps", "1.5"],
    "train.steps=[1]": ["train.steps"],
    "train.steps={a: 1}": ["train.steps"],
    "train.steps=0": ["train.steps=0"],
    "train.steps=null": ["train.steps"],
    "train.ema=high": ["train.ema", "high"],
    "log.progress=maybe": ["log.progress", "maybe"],
    "augment.flip=yes": ["augment.flip", "yes"],
    "dataset.crop=128": ["dataset.crop", "[128,128]"],
    "dataset.crop=128x256": ["dataset.crop", "["],
    "eval.scales=1": ["eval.scales", "[1]"],
    "eval.scales=big": ["eval.scales", "big"],
    "eval.scales=[1,2": ["eval.scales"],
    "eval.scales=0.5,1": ["eval.scales", "["],
    "train.precision=fp8": ["train.precision=fp8", "bf16"],
    "train=5": ["train"],
    "train=fast": ["train"],
    "model.norm=groups": ["model.norm", "groups"],
    # groups
    "model=unett": ["model=unett", "`unet`"],
    "model=null": ["model"],
    "model=unet,fcn": ["model=unet,fcn", "-m"],
    "writer=null": ["writer", "[]"],
    "writer=tensorbord": ["writer", "tensorboard"],
    "experiment=nothing": ["experiment=nothing"],
    "ablation=pspnet_bins": ["ablation=pspnet_bins", "-m"],
    "train.seed=1,2": ["train.seed=1,2", "-m"],
    "train.seed=choice(1,2)": ["train.seed", "-m"],
    "train.seed=range(1,3)": ["train.seed", "-m"],
    # parts and Hydra
    "model._target_=os.system": ["model._target_", "os.system"],
    "+model.x._target_=os.system": ["model.x"],
    "hydra.job.chdir=true": ["hydra.job.chdir"],
    "hydra.job.env_set.X=1": ["hydra.job.env_set"],
    "+hydra.job.env_set.X=1": ["hydra.job.env_set"],
    "hydra.callbacks.x._target_=os.getcwd": ["hydra.callbacks"],
    "+hydra.callbacks.x._target_=os.getcwd": ["hydra.callbacks"],
    "hydra.launcher._target_=os.getcwd": ["hydra.launcher"],
    "hydra/launcher=joblib": ["hydra/launcher=joblib", "-m"],
    "hydra/sweeper=basic": ["hydra/sweeper"],
    "hydra/job_logging=disabled": ["hydra/job_logging"],
    "hydra.output_subdir=x": ["hydra.output_subdir"],
    "hydra.mode=MULTIRUN": ["hydra.mode"],
    "hydra.rundir=x": ["hydra.rundir", "hydra.run.dir"],
    # words
    "train.steps": ["train.steps", "key=value"],
    "train.steps =5": ["train.steps"],
    "train.init=a\nb": ["train.init", "control"],
    "hydra.run.dir=a\x1b[31m": ["hydra.run.dir", "control"],
    "train.init=${nothing.there}": ["train.init", "nothing"],
    "train.init=${oc.env:NOT_SET_ANYWHERE}": ["NOT_SET_ANYWHERE"],
    "--config-dir": ["--config-dir"],
    "--config-dir=nowhere": ["--config-dir=nowhere"],
    "--cfg jobb": ["--cfg", "jobb"],
    # with -m
    "-m lr=0.1,0.2": ["lr", "optimizer.lr"],
    "-m train.step=1,2": ["train.step", "train.steps"],
    "-m train.seed=1,,2": ["train.seed"],
    "-m train.seed=": ["train.seed"],
    "-m train.seed=1,x": ["train.seed", "x"],
    "-m model=unet,fccn": ["fccn", "`fcn`"],
    "-m ~model": ["model"],
    "-m +foo=1,2": ["foo"],
    "-m resume=x": ["resume"],
    "-m --cfg job": ["-m", "--cfg"],
    "-m hydra/launcher=nothing train.seed=1,2": ["hydra/launcher=nothing"],
    "-m hydra.launcher._target_=os.getcwd train.seed=1,2": ["hydra.launcher"],
    "-m hydra.job.env_set.X=1 train.seed=1,2": ["hydra.job.env_set"],
    "-m hydra.launcher={_target_:os.getcwd} train.seed=1,2": ["hydra.launcher"],
    "-m hydra.launchers.n_jobs=2 train.seed=1,2": ["hydra.launchers"],
    "-m hydra/launchers=basic train.seed=1,2": ["hydra/launchers"],
    "-m hydra.sweeper=basic train.seed=1,2": ["hydra.sweeper"],
    "-m hydra.sweeper.max_batch_size=0 train.seed=1,2": ["hydra.sweeper.max_batch_size=0"],
    "-m hydra.sweeper.max_batches=1 train.seed=1,2": ["hydra.sweeper.max_batches"],
    "-m hydra.sweeper.params.train.step=1,2": ["train.step"],
    "-m hydra.sweeper.params.hydra.job.chdir=1,2": ["hydra.job.chdir"],
    "-m hydra.sweeper.params.=1": ["hydra.sweeper.params"],
    "-m model@hydra.callbacks.x=unet train.seed=1,2": ["hydra.callbacks"],
    "model@hydra.callbacks.x=unet": ["hydra.callbacks"],
    "model@hydra.job=unet": ["hydra.job"],
    "model@train=unet": ["model@train"],
    "model@foo=unet": ["foo"],
    "-m hydra.run.dir= train.seed=1,2": ["hydra.run.dir"],
    "-m train.seed=interval(1,2)": ["train.seed"],
    "-m train.seed=range(0,1000000000)": ["train.seed"],
    "-m ablation=nothing": ["ablation=nothing"],
}
# What the shell hands over as one word although it holds a space.
WHOLE = ("train.init= ", "train.steps =5", "train.steps={a: 1}", "train.init=a\nb")

OTHERS: dict[str, list[str]] = {
    "segeval outputs/run": ["checkpoint=outputs/run"],
    "segeval run": ["run", "key=value"],
    "segeval --checkpoint outputs/run": ["checkpoint=outputs/run"],
    "segeval --checkpoint=outputs/run": ["checkpoint=outputs/run"],
    "segeval checkpoint=": ["checkpoint=", "RUN_OR_FILE"],
    "segeval checkpoint=''": ["checkpoint"],
    "segeval chekpoint=run": ["chekpoint", "`checkpoint`"],
    "segeval checkpoint=nowhere": ["nowhere"],
    "segeval checkpoint=grün": ["grün"],
    "segeval checkpoint=2026_11_29": ["2026_11_29"],
    "segeval predictions=": ["predictions="],
    "segeval checkpoint=a predictions=b": ["checkpoint", "predictions"],
    "segpredict outputs/run": ["checkpoint=outputs/run"],
    "segpredict checkpoint=a input=b": ["output=", "missing"],
    "segpredict checkpoint=a input= output=c": ["input="],
    "segpredict checkpoint=a --output c input=b": ["output=c"],
    "segdata verfy dataset=shapes": ["verfy", "`verify`"],
    "segdata verify shapes": ["shapes", "key=value"],
    "segdata verify datset=shapes": ["datset", "dataset"],
    "segdata verify dataset=shapes output=": ["output="],
    "segdata verify dataset=shapes foo=1": ["foo"],
    "segdata verify --dataset shapes": ["dataset=shapes"],
    "segreport": ["segreport"],
    "segreport nowhere": ["nowhere"],
    "segreport . output=": ["output="],
    "segreport --output x .": ["--output", "output="],
    "segreport foo=1": ["foo=1"],
}


def split(typed: str) -> list[str]:
    return [typed] if typed in WHOLE else typed.split()


QUICK_REFUSED = ("++eval.scale=[1]", "epochs=10")


def assert_refused(warm: Warm, places: Places, typed: str) -> None:
    before = places.look()
    ended = warm("segtrain", *split(typed), cwd=places.work, env=places.env, timeout=15)
    assert_one_line(ended, "segtrain", 2, *REFUSED[typed])
    assert places.look() == before
    assert ended.seconds < 2


@pytest.mark.row("R7")
@pytest.mark.parametrize("typed", QUICK_REFUSED)
def test_a_slip_is_one_line(settings: Warm, places: Places, typed: str) -> None:
    assert_refused(settings, places, typed)


@pytest.mark.slow
@pytest.mark.parametrize("typed", [typed for typed in REFUSED if typed not in QUICK_REFUSED])
def test_every_slip_is_one_line(settings: Warm, places: Places, typed: str) -> None:
    assert_refused(settings, places, typed)


@pytest.mark.slow
@pytest.mark.parametrize("typed", OTHERS)
def test_a_slip_in_another_command_is_one_line(training: Warm, places: Places, typed: str) -> None:
    name, *words = typed.split()
    before = places.look()
    if not words:
        name, words = "segreport", ["output=x"]
    ended = training(name, *words, cwd=places.work, env=places.env)
    assert_one_line(ended, name, 2, *OTHERS[typed])
    assert places.look() == before


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["model.bogus=1", "optimizer.bogus=1", "dataset.bogus=1"])
def test_python_names_the_same_key(typed: str) -> None:
    with pytest.raises(UserError, match=typed.partition("=")[0]):
        compose_config([typed])


# ---------------------------------------------------------------------- and it trains

NAMES = ("2026_11_29", "grün & weiß", "a=b,c#d", "$UNSET", "~x", "1e3", "[run]", "'null'")


def done(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("typed", NAMES)
def test_what_trains_can_be_resumed_measured_predicted_with_and_loaded(
    training: Warm, places: Places, typed: str
) -> None:
    """The run's folder, that of the data and all others have the name."""
    name = typed.strip("'")
    data = places.work / "data" / name
    for kind in ("images", "masks"):
        for part in ("train", "val"):
            (data / kind / part).mkdir(parents=True)
            for image in "ab":
                eye = np.eye(32, dtype=np.uint8)
                values = eye if kind == "masks" else np.stack([eye, eye, eye], 2)
                Image.fromarray(values).save(data / kind / part / f"{image}.png")

    def run(name: str, *words: str) -> Ended:
        return done(training(name, *words, cwd=places.work, env=places.env))

    labels = "dataset.labels=[{id: 0, name: ground}, {id: 1, name: thing}]"
    settings = [word for word in TINY if not word.startswith("dataset")]
    quoted = f"'data/{name}'" if typed.startswith("'") else f"data/{typed}"
    run(
        "segtrain",
        "dataset=folder",
        f"dataset.root={quoted}",
        labels,
        "dataset.crop=[32,32]",
        *settings,
        "train.steps=2",
        "train.save_every=1",
        f"hydra.run.dir={typed}",
    )
    folder = places.work / name
    assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"]["root"] in (
        f"data/{name}",
        str(data),
    )
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step_00000002")
    run("segtrain", f"resume={typed}")
    assert (folder / "metrics.jsonl").read_bytes() == before
    run("segeval", f"checkpoint={typed}", "log.progress=false", f"eval.output={typed}-scores")
    scores = places.work / f"{typed}-scores"
    assert 0 <= json.loads((scores / "metrics.json").read_text())["mIoU"] <= 1
    (places.work / "in").mkdir()
    shutil.copy(data / "images" / "val" / "a.png", places.work / "in" / f"{name}.png")
    run(
        "segpredict",
        f"checkpoint={typed}",
        f"input=in/{name}.png",
        f"output={typed}-out",
        "log.progress=false",
    )
    assert (places.work / f"{typed}-out" / f"{name}.png").is_file()
    run("segreport", f"./{name}", "output=report")
    from segtrain import api

    loaded = api.load(folder, device="cpu")
    assert loaded(data / "images" / "val" / "a.png").shape == (32, 32)
