"""Of Hydra's own node a config file from outside decides four things, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.config.compose import compose_config
from segtrain.config.jobs import expand
from segtrain.errors import UserError

GLOBAL = "# @package _global_\n"
REFUSED = {
    "callbacks": GLOBAL + "hydra: {callbacks: {x: {_target_: os.getcwd}}}",
    "environment": GLOBAL + "hydra: {job: {env_set: {PYTHONPATH: /tmp}}}",
    "env_copy": GLOBAL + "hydra: {job: {env_copy: [NOWHERE]}}",
    "launcher": GLOBAL + "hydra: {launcher: {_target_: os.getcwd}}",
    "chosen_launcher": GLOBAL + "defaults: [override /hydra/launcher: joblib]",
    "sweeper": GLOBAL + "hydra: {sweeper: {_target_: os.getcwd}}",
    "logging": GLOBAL + "hydra: {job_logging: {handlers: {f: {filename: /tmp/x}}}}",
    "chdir": GLOBAL + "hydra: {job: {chdir: true}}",
    "output": GLOBAL + "hydra: {output_subdir: x}",
    "search_path": GLOBAL + "hydra: {searchpath: [pkg://os]}",
    "package": "# @package hydra.callbacks\nx: {_target_: os.getcwd}",
    "placed": GLOBAL + "defaults: [/model/mine@hydra.callbacks.x]",
    "upwards": GLOBAL + "hydra: {run: {dir: ../x}, sweep: {dir: a/../../x}}",
    "control": GLOBAL + 'hydra: {run: {dir: "a\\nb"}, sweep: {dir: "a\\nb"}}',
    "swept_hydra": GLOBAL + 'hydra: {sweeper: {params: {hydra.run.dir: "a,b"}}}',
    "output_upwards": GLOBAL + "eval: {output: ../x}",
    "unknown": GLOBAL + "hydra: {no_such_key: 1}",
    "doubling": GLOBAL + "defaults: [/model/d0@model.x]",
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every refused config, and with one that is obeyed."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "mine.yaml").write_text("_target_: os.getcwd\n")
    for name, text in REFUSED.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"{text}\n")
    for number in range(40):
        following = f"defaults: [d{number + 1}@a, d{number + 1}@b]\n"
        (folder / "model" / f"d{number}.yaml").write_text(following)
    (folder / "experiment" / "obeyed.yaml").write_text(
        f"{GLOBAL}train: {{steps: 7}}\n"
        "hydra: {run: {dir: 'a/${model.backbone}'}, sweep: {dir: s, subdir: 'n${hydra:job.num}'},\n"
        "  sweeper: {params: {train.seed: '1,2'}}}\n"
    )
    return folder


QUICK = ("callbacks", "environment", "placed", "upwards")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFUSED]
)
def test_a_file_that_says_more_is_refused_alone_and_in_a_sweep(conf: Path, name: str) -> None:
    for compose in (compose_config, expand):
        with pytest.raises(UserError) as refused:
            compose([f"experiment={name}"], [conf])
        assert "\n" not in str(refused.value)


def test_run_folder_sweep_folder_and_swept_values_of_a_file_are_obeyed(conf: Path) -> None:
    cfg, folder = compose_config(["experiment=obeyed"], [conf])
    assert (cfg.train.steps, folder) == (7, Path("a/resnet18"))
    jobs = expand(["experiment=obeyed"], [conf]).jobs
    assert [job.cfg.train.seed for job in jobs] == [1, 2]
    assert [job.folder for job in jobs] == [Path("s/n0").absolute(), Path("s/n1").absolute()]
    by_search_path = compose_config(["experiment=obeyed", f"hydra.searchpath=[{conf}]"])
    assert by_search_path[0].train.steps == 7


def test_a_group_of_hydras_own_is_not_read_from_outside(tmp_path: Path) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "basic.yaml").write_text("_target_: os.getcwd\n")
    with pytest.raises(UserError, match=r"basic.yaml: Hydra's own groups are not read from here"):
        compose_config([], [tmp_path])


def test_the_types_of_a_run_are_not_replaced_from_outside(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text("train: {steps: many}\n")
    with pytest.raises(UserError, match=r"schema.yaml: has the name of segtrain's own schema"):
        compose_config([], [tmp_path])
