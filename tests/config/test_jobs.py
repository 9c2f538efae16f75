"""A sweep is many commands: each run is what its settings are alone, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.config.compose import compose_config, plain_run
from segtrain.config.jobs import MAX_NAME_BYTES, expand, folder_names
from segtrain.errors import UserError


def test_every_run_is_what_its_settings_are_alone() -> None:
    sweep = expand(["model=unet,fcn", "dataset=camvid", "dataset.root=2026_1,'a,b'"])
    assert [job.words for job in sweep.jobs] == [
        [f"model={model}", "dataset=camvid", f"dataset.root={root}"]
        for model in ("unet", "fcn")
        for root in ("2026_1", "'a,b'")
    ]
    assert [job.cfg.dataset.root for job in sweep.jobs] == ["2026_1", "a,b"] * 2
    for job in sweep.jobs:
        assert plain_run(job.cfg) == plain_run(compose_config(job.words)[0])


@pytest.mark.slow
def test_what_is_typed_wins_over_what_an_ablation_sweeps() -> None:
    sweep = expand(["ablation=deeplab_aspp", "dataset.root=x", "train.seed=range(2)"])
    assert [list(job.cfg.model.dilations) for job in sweep.jobs[::2]] == [
        [12],
        [2, 4, 8, 12],
        [6, 12, 18, 24],
    ]
    assert [job.cfg.train.seed for job in sweep.jobs] == [0, 1] * 3
    typed = expand(["ablation=deeplab_aspp", "dataset.root=x", "model.dilations=[1]"])
    assert [list(job.cfg.model.dilations) for job in typed.jobs] == [[1]]


def test_a_folder_is_named_by_what_is_swept_first(tmp_path: Path) -> None:
    sweep = expand(["train.batch_size=4", "model=unet,fcn", f"hydra.sweep.dir={tmp_path}"])
    assert [job.folder for job in sweep.jobs] == [
        tmp_path / "model=unet,train.batch_size=4",
        tmp_path / "model=fcn,train.batch_size=4",
    ]
    numbered = expand(
        ["train.seed=1,2", "hydra.sweep.dir=s", "hydra.sweep.subdir=${hydra.job.num}"]
    )
    assert [job.folder.name for job in numbered.jobs] == ["0", "1"]


def test_no_folder_has_a_longer_name_than_a_file_system_takes() -> None:
    long = "/data/" + "ü" * 150
    words = [[f"train.init={long}{seed}", f"train.seed={seed}"] for seed in range(3)]
    names = folder_names(words, ["train.init", "train.seed"])
    assert len({*names}) == 3
    assert max(len(name.encode()) for name in names) <= MAX_NAME_BYTES
    assert not any("/" in name for name in names)
    fixed = [f"train.a{n}=0123456789" for n in range(20)]
    assert folder_names([[*fixed, "x=1"], [*fixed, "x=2"]], ["x"]) == ["x=1", "x=2"]
    assert len(folder_names([fixed], [])[0].encode()) <= MAX_NAME_BYTES


def test_two_runs_never_share_a_folder() -> None:
    names = folder_names([["train.init=a/b"], ["train.init=a_b"]], ["train.init"])
    assert len({*names}) == 2
    assert all(name.startswith("train.init=a_b-") for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.step=5,6"], "Did you mean `train.steps`?"),
        (["model=unet,unett"], "model=unett: no such model"),
        (["train.seed=1,,2"], "a value between its commas is missing"),
        (["train.seed=interval(0,1)"], "is for a search, hydra/sweeper=optuna; list the values"),
        (["search=lr_wd"], "is for a search, hydra/sweeper=optuna; list the values"),
        (["hydra.sweeper.n_trials=6"], "is for a search; add hydra/sweeper=optuna"),
        (["train.seed=range(0,1000000000)"], "more than 1,000 runs"),
        ([f"train.{k}=range(1,11)" for k in ("seed", "keep", "steps", "workers")], "10,000 runs"),
        (["model.backbone=resnet18,resnet19"], "Did you mean `resnet18`"),
        (["model=glob(zz*)"], "fits none of"),
        (["ablation=deeplab_aspp,deeplab_msc"], "an ablation is a sweep already"),
        (["hydra/launcher=mine"], "no such launcher; there are basic, joblib"),
        (["hydra/sweeper=ax"], "no such sweeper; hydra/sweeper=basic or optuna"),
        (["hydra.sweeper._target_=os.system"], "no such sweeper"),
        (["hydra.launcher._target_=os.system"], "chosen by hydra/launcher=NAME"),
        (["hydra.sweeper.max_batch_size=0"], "at least 1"),
        (["hydra.launcher={a: 1}"], "hydra.launcher={a: 1}: is no setting of a run"),
        (["hydra.launchers.n_jobs=2"], "is no setting of a run"),
        (["hydra/launchers=basic"], "Did you mean `hydra/launcher`"),
        (["hydra.sweeper.params.=1"], "hydra.sweeper.params.=1: is no setting of a run"),
        (["hydra.sweeper.direction=max"], "train.monitor_mode=max or min says"),
        (["hydra.callbacks.x._target_=os.system"], "runs nothing"),
        (["hydra.sweep.dir="], "hydra.sweep.dir=: a value is missing"),
    ],
)
def test_a_mistake_in_a_sweep_is_named_before_its_first_run(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        expand(words)
