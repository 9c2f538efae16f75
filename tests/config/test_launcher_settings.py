"""What may be said of launchers on a command line."""

from __future__ import annotations

import pytest

from segtrain.config import launchers, settings
from segtrain.config.launchers import PoolConf
from segtrain.errors import UserError

GPUS = "hydra/launcher=gpus"


def read(*words: str) -> tuple[list[str], PoolConf | None]:
    return launchers.read([settings.read(word) for word in words])


def test_without_a_choice_the_launcher_is_hydras() -> None:
    assert read() == ([], None)
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    assert read(*words) == (words, None)


def test_ours_takes_devices_and_numbers_and_leaves_hydra_nothing() -> None:
    assert read(GPUS) == ([], PoolConf())
    devices = "hydra.launcher.devices=[0,3]"
    chosen = PoolConf(("0", "3"), 2, 5, devices)
    words = (devices, "hydra.launcher.jobs_per_gpu=2", "hydra.launcher.jobs=5")
    assert read(GPUS, *words) == ([], chosen)
    assert read(*words, GPUS) == ([], chosen)


def test_gpus_are_named_as_the_driver_names_them() -> None:
    _, conf = read(GPUS, "hydra.launcher.devices=[GPU-8f2c,MIG-1]")
    assert conf is not None
    assert conf.devices == ("GPU-8f2c", "MIG-1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=gpu"], "hydra/launcher=gpu: no such launcher; there are basic, joblib"),
        ([GPUS, "hydra.launcher.job=2"], r"hydra.launcher.job=2: no setting of .* mean `jobs`"),
        ([GPUS, "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0: must be at least 1"),
        ([GPUS, "hydra.launcher.jobs=many"], "hydra.launcher.jobs=many: a whole number is needed"),
        ([GPUS, "hydra.launcher.devices=[]"], r"devices=\[\]: GPUs are named as in"),
        ([GPUS, "hydra.launcher._target_=os.system"], "a launcher is chosen by hydra/launcher="),
        (["hydra.launcher.jobs=2"], "is a setting of hydra/launcher=gpus; add that"),
    ],
)
def test_what_no_launcher_has_is_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(*words)
