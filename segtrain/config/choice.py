"""Sort out a command line: which words choose parts, which set values, which are Hydra's own.

Nothing is composed here. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from segtrain.config import outside, primary, settings, suggest, trust
from segtrain.config.old_names import modern_overrides
from segtrain.config.primary import Primary
from segtrain.config.schema import CONF_DIR
from segtrain.config.settings import Setting
from segtrain.config.suggest import groups
from segtrain.errors import UserError

# Groups that nothing need be chosen from.
MAY_BE_NONE = ("recipe", "experiment", "ablation", "search")
# What may be typed of Hydra's node: for every command, and for a sweep.
OF_EVERY_RUN = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.searchpath")
OF_A_SWEEP = (
    "hydra/launcher",
    "hydra.launcher.KEY",
    "hydra.sweeper.params.KEY",
    "hydra.sweeper.max_batch_size",
    "hydra/sweeper",
)
# What may be typed for a sweep that searches, see `config.search`.
OF_A_SEARCH = (
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra.sweeper.sampler",
    "hydra.sweeper.pruner",
    "hydra.sweeper.seed",
)
SWEEPERS = ("basic", "optuna")
# What Hydra's own Optuna sweeper knows besides, and what is written here.
IN_STUDIES = {
    "hydra.sweeper.direction": "train.monitor_mode=max or min says which values are better",
    "hydra.sweeper.storage": "a study lies in the folder of its runs, hydra.sweep.dir=FOLDER",
    "hydra.sweeper.study_name": "a study lies in the folder of its runs, hydra.sweep.dir=FOLDER",
    "hydra.sweeper.search_space": "write KEY=interval(a,b), or hydra.sweeper.params.KEY=...",
    "hydra.sweeper.sampler.seed": "write hydra.sweeper.seed=N",
    "hydra/sweeper/sampler": "write hydra.sweeper.sampler=NAME",
}
FOLDERS = OF_EVERY_RUN[:3]


class Choice(NamedTuple):
    """The settings of a command line, by who reads them."""

    groups: dict[str, Setting]  # by group; of two choices the later counts
    values: list[Setting]
    hydra: list[Setting]
    config_dirs: tuple[str | Path, ...]
    names: dict[str, list[str]]  # the names in every group
    primary: Primary  # the config that all of it stands on

    @property
    def search_path(self) -> list[str]:
        """What `hydra.searchpath` lists."""
        return _search_path(self.hydra)

    @property
    def outside(self) -> bool:
        """Whether configs from outside segtrain may take part."""
        return bool(self.config_dirs or self.search_path or trust.conf_folders())

    @property
    def flags(self) -> list[str]:
        """The flags that say where configs are, as they would be typed."""
        folders = [word for each in self.config_dirs for word in ("--config-dir", str(each))]
        named = [primary.FLAG, self.primary.name] if self.primary.bodies else []
        return [*folders, *named]

    def typed(self, key: str) -> bool:
        """Tell whether a person typed this very key."""
        return any(setting.key == key for setting in (*self.values, *self.hydra))


def sort_out(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    sweep: bool = False,
    config_name: str = primary.OURS,
) -> Choice:
    """Read the settings of a command line. Errors: UserError naming the word at fault.

    `sweep`: they may choose a launcher, and hold several values each.
    """
    if not CONF_DIR.is_dir():
        raise UserError(f"{CONF_DIR}: the configs are missing; install segtrain again")
    read = [settings.read(word) for word in modern_overrides(overrides)]
    of_hydra = [setting for setting in read if setting.key.startswith(("hydra.", "hydra/"))]
    for setting in of_hydra:
        _check_hydra(setting, sweep)
    folders = _own_folders(of_hydra, config_dirs)
    names = groups(folders)
    if begun := [setting for setting in read if setting.key == "train.begin"]:
        raise UserError(f"{begun[0].word}: segtrain writes this itself, for extend=RUN")
    chosen: dict[str, Setting] = {}
    values: list[Setting] = []
    for setting in read:
        group = setting.key.partition("@")[0]
        if setting in of_hydra:
            continue
        if group in names and not setting.text.startswith("{"):
            if setting.sign == "~":
                raise UserError(f"{setting.word}: a {group} is chosen anew, {group}=NAME")
            chosen[setting.key] = setting
        else:
            values.append(setting)
    of_packages = trust.conf_folders().values()
    begins_with = primary.find(config_name, [*folders, *of_packages])
    return Choice(chosen, values, of_hydra, tuple(config_dirs), names, begins_with)


def own_folders(words: Sequence[str], config_dirs: Sequence[str | Path]) -> list[Path]:
    """Return the folders with a user's own configs that a command line names.

    They are `config_dirs` and those of `hydra.searchpath` among the words. Errors: UserError.
    """
    places = [word for word in words if word.lstrip("+").startswith("hydra.searchpath=")]
    return _own_folders([settings.read(word) for word in places], config_dirs)


def _own_folders(of_hydra: Sequence[Setting], config_dirs: Sequence[str | Path]) -> list[Path]:
    folders = outside.folders_of(config_dirs, _search_path(of_hydra))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of configs")
    return folders


def _search_path(of_hydra: Sequence[Setting]) -> list[str]:
    """Return the places that `hydra.searchpath=[...]` lists. Errors: UserError."""
    places: list[str] = []
    for setting in of_hydra:
        if setting.key == "hydra.searchpath":
            given = settings.unquoted(setting.text)
            if given.startswith("["):
                inner = settings.split_commas(given.removeprefix("[").removesuffix("]"))
                places = [settings.as_text(place) for place in inner if place]
            else:
                places = [settings.as_text(setting.text)]
    return places


def _check_hydra(setting: Setting, sweep: bool) -> None:
    """Refuse what a command line may not say of Hydra's node. Errors: UserError."""
    key = setting.key
    if setting.sign == "~":
        raise UserError(f"{setting.word}: settings of Hydra's own are not removed")
    if key in OF_EVERY_RUN:
        return
    if key in IN_STUDIES:
        raise UserError(f"{setting.word}: {IN_STUDIES[key]}")
    sweeper = settings.unquoted(setting.text) if key == "hydra/sweeper" else SWEEPERS[0]
    if key == "hydra.sweeper._target_" or sweeper not in SWEEPERS:
        raise UserError(f"{setting.word}: no such sweeper; hydra/sweeper={' or '.join(SWEEPERS)}")
    below = {name.removesuffix("KEY") for name in OF_A_SWEEP if name.endswith(".KEY")}
    of_a_sweep = (*OF_A_SWEEP, *OF_A_SEARCH)
    if key in of_a_sweep or any(key.startswith(name) and key != name for name in below):
        if not sweep:
            raise UserError(f"{setting.word}: is for the runs of a sweep; add -m")
        return
    known = [*OF_EVERY_RUN, *of_a_sweep]
    why = "runs nothing and sets no variables" if "env" in key or "callbacks" in key else ""
    raise UserError(
        f"{setting.word}: {why or 'is no setting of a run'}; of Hydra's own there are "
        f"{', '.join(known)}.{suggest.did_you_mean(key, known)}"
    )
