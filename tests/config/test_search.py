"""A search is checked at its ends, and each of its trials is what its words are alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from documents import ROOT

from segtrain.commands import main
from segtrain.config.compose import compose_config, plain_run
from segtrain.config.search import SearchSettings, asked, read
from segtrain.config.space import Numbers, Texts
from segtrain.errors import UserError

OPTUNA = "hydra/sweeper=optuna"
LR = "optimizer.lr=interval(1e-4,1e-1)"


def test_a_trial_is_what_its_values_are_typed_alone(tmp_path: Path) -> None:
    words = [OPTUNA, LR, "optimizer=sgd", "dataset.root=x", "train.batch_size=range(4,9,2)"]
    search = read([*words, "dataset=camvid", "model=unet,fcn", f"hydra.sweep.dir={tmp_path}"])
    assert search.space == {
        "model": Texts(["unet", "fcn"]),
        "optimizer.lr": Numbers(1e-4, 1e-1),
        "train.batch_size": Numbers(4, 8, 2, whole=True),
    }
    job = search.job(7, {"model": "fcn", "optimizer.lr": "0.02", "train.batch_size": "6"})
    alone = plain_run(compose_config(job.words)[0])
    assert plain_run(job.cfg) == alone
    assert alone["optimizer"]["lr"] == 0.02
    assert type(alone["train"]["batch_size"]) is int
    assert job.folder.parent == tmp_path
    assert job.folder.name.startswith("007,model=fcn,optimizer.lr=0.02,train.batch_size=6")


def test_settings_of_a_search_have_the_names_of_hydras_own() -> None:
    words = "n_trials=6 n_jobs=2 sampler=random pruner=median seed=3"
    search = read([OPTUNA, LR, *(f"hydra.sweeper.{word}" for word in words.split())])
    assert search.settings == SearchSettings(6, 2, "random", "median", 3)
    assert (search.monitor, search.minimised) == ("mIoU", False)


def test_a_file_holds_a_space_and_what_is_typed_wins(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer.lr: 'interval(0.01, 0.1)'}}}\n"
    )
    assert read(["search=mine"], [tmp_path]).space == {"optimizer.lr": Numbers(0.01, 0.1)}
    search = read(["search=mine", LR], [tmp_path])
    assert search.space == {"optimizer.lr": Numbers(1e-4, 1e-1)}
    # The space is no setting of a run, so that the run can be started alone.
    assert search.job(0, {"optimizer.lr": "0.05"}).words == ["optimizer.lr=0.05"]


@pytest.mark.slow
def test_the_space_that_is_shipped_is_of_learning_rate_and_weight_decay() -> None:
    search = read(["search=lr_wd"])
    assert search.space == {
        "optimizer.lr": Numbers(1e-5, 1e-1, log=True),
        "optimizer.weight_decay": Numbers(1e-6, 1e-1, log=True),
    }


@pytest.mark.slow
def test_the_searches_that_the_pages_name_can_be_begun() -> None:
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/training.md")]
    commands = re.findall(r"`(segtrain -m [^`]*(?:optuna|search=)[^`]*)`", "\n".join(pages))
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)[2:]
        assert asked(words)
        assert read(words).space


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([OPTUNA, LR], True),
        (["search=lr_wd"], True),
        (["search=null", LR], False),
        ([LR], False),
        (["search=lr_wd", "hydra/sweeper=basic"], False),
    ],
)
def test_a_search_is_asked_for_by_the_sweeper_or_by_a_space(words: list[str], answer: bool) -> None:
    assert asked(words) is answer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to search for"),
        ([LR, "hydra.sweeper.n_trials=0"], "must be at least 1"),
        pytest.param(
            [LR, "hydra.sweeper.n_trials=1001"], "must be at most 1,000", marks=pytest.mark.slow
        ),
        pytest.param(
            [LR, "hydra.sweeper.n_trials=six"], "a whole number is expected", marks=pytest.mark.slow
        ),
        pytest.param(
            [LR, "hydra.sweeper.sampler=cmaes"], "not one of tpe, random", marks=pytest.mark.slow
        ),
        ([LR, "hydra.sweeper.pruner=medain"], "Did you mean `median`"),
        ([LR, "hydra.sweeper.storage=sqlite:///x"], "lies in the folder of its runs"),
        ([LR, "hydra/launcher=joblib"], "a search starts its runs itself"),
        pytest.param(
            [LR, "hydra.sweep.subdir=x"],
            "every trial would have the folder",
            marks=pytest.mark.slow,
        ),
        (["optimizer.rl=interval(0,1)"], "optimizer.rl: no such key"),
        pytest.param(
            ["optimizer=sgd", "optimizer.momentum=interval(0,2)"],
            r"optimizer.momentum=2.0: must be",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model.backbone=resnet18,resnet19"], "Did you mean `resnet18`", marks=pytest.mark.slow
        ),
        pytest.param(
            [LR, "train.monitor_mode=min,max"],
            "is what trials are compared by",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [LR, "search=lr_wd,lr_wd2"], "a search has a space already", marks=pytest.mark.slow
        ),
        pytest.param([LR, "search=lr"], "no such search; there are lr_wd", marks=pytest.mark.slow),
        pytest.param([LR, "train.step=5"], "Did you mean `train.steps`", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_in_a_search_is_named_before_its_first_trial(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read([OPTUNA, *words])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {steps: 5}", "sets more than hydra.sweeper.params"),
        pytest.param("hydra: {sweeper: {n_trials: 999}}", "decides only", marks=pytest.mark.slow),
        ("defaults: [override /hydra/sweeper: optuna]", "hydra/sweeper"),
        pytest.param(
            "hydra: {sweeper: {params: {hydra.sweep.dir: 'a,b'}}}",
            "is no setting of a run",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "hydra: {sweeper: {params: {model._target_: 'os.mkdir,os.rmdir'}}}",
            "_target_",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_file_of_somebody_else_chooses_no_more_than_a_space(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "theirs.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=said):
        read([OPTUNA, LR, "search=theirs"], [tmp_path])


def test_a_search_without_m_is_told_how_it_is_started() -> None:
    with pytest.raises(UserError, match="start it with segtrain -m search=lr_wd"):
        main.run(["search=lr_wd"])
    with pytest.raises(UserError, match="is for the runs of a sweep; add -m"):
        main.run([OPTUNA, LR])
