"""Compose: from the command line to checked settings. The one door.

Hydra composes the groups that are chosen; every other setting is read by `settings.py` and put in
here, one by one, so that what is wrong is named by the word that was typed. Imports no torch: a
typo ends before it is loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segtrain.config import (
    by_hydra,
    headers,
    outside,
    parts,
    primary,
    recipes,
    settings,
    suggest,
    trust,
)
from segtrain.config.bounds import refuse_endless, refuse_endless_references
from segtrain.config.files import load_yaml
from segtrain.config.hydra_state import left_alone, stored
from segtrain.config.old_names import modern_overrides
from segtrain.config.primary import Primary
from segtrain.config.schema import CONF_DIR, PARTS, RunConf, one_line, typed
from segtrain.config.settings import Setting, Unknown
from segtrain.config.sources import resolve
from segtrain.config.suggest import flat_keys, groups
from segtrain.errors import UserError

# Groups that nothing need be chosen from.
MAY_BE_NONE = ("recipe", "experiment", "ablation", "search")
# Folders that a command makes or fills, if they are given.
WRITTEN = ("eval.output", "eval.submission", "dataset.cache")
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
OF_OURS = ("hydra.output_subdir", "hydra.job.chdir")  # what conf/train.yaml says beside them


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


def compose_config(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> tuple[DictConfig, Path]:
    """Return the composed config, not yet checked, and the run folder that it names.

    `config_dirs` are folders with groups of a user's own, beside segtrain's, and `config_name` a
    file of them that stands in place of conf/train.yaml. Errors: UserError with a suggestion.
    """
    choice = sort_out(overrides, config_dirs, config_name=config_name)
    cfg = composed(choice)
    folder = folder_of(cfg, "hydra.run.dir", choice)
    return without_hydra(cfg), folder


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


def composed(choice: Choice, of_job: Mapping[str, Any] = MappingProxyType({})) -> DictConfig:
    """Let Hydra compose the groups, and put in every value that was typed.

    The config holds Hydra's node still; `of_job` are values of it that only a sweep knows.
    Errors: UserError naming the word or the file at fault.
    """
    from hydra.core.hydra_config import HydraConfig

    recipe, set_by_file = _recipe(choice)
    with offered(choice, recipe) as words:
        cfg = by_hydra.compose(words, choice.primary.name)
    if recipe:
        OmegaConf.update(cfg, "recipe", recipe.name, force_add=True)
    if choice.outside:
        own = by_hydra.compose([], primary.OURS)
        if not choice.primary.on_ours:
            by_hydra.take_unsaid(cfg, own, (*FOLDERS, *OF_OURS))
        outside.refuse_hydra_settings(_plain(cfg.hydra), _plain(own.hydra))
    for setting in choice.hydra:
        if setting.key in FOLDERS:
            try:
                OmegaConf.update(cfg, setting.key, settings.as_text(setting.text))
            except OmegaConfBaseException as error:  # a `${` that is not closed
                raise UserError(f"{setting.word}: {one_line(error)}") from error
    for key, value in of_job.items():
        OmegaConf.update(cfg, f"hydra.{key}", value, force_add=True)
    for setting in choice.values:
        put(cfg, setting, choice.names)
    if OmegaConf.select(cfg, "train.scale_recipe") is True:
        own = {*set_by_file, *(setting.key for setting in choice.values), *choice.groups}
        values = recipes.scaled(lambda key: OmegaConf.select(cfg, key), recipe, own)
        for key, value in values.items():
            OmegaConf.update(cfg, key, value)
    HydraConfig.instance().set_config(cfg)  # what `${hydra:...}` reads
    whole = plain_run(cfg)
    refuse_endless(whole, "config")
    refuse_endless_references(whole, "config")
    for key in WRITTEN:
        folder = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if isinstance(folder, str):
            outside.check_written(key, folder, choice.typed(key))
    return cfg


@contextmanager
def offered(choice: Choice, recipe: recipes.Taken | None) -> Generator[list[str]]:
    """Offer to Hydra, inside the block, what lies in no folder that it looks into by itself.

    That is what is taken of a recipe, a group of its own which comes before the experiment, and a
    primary config of the user's own, which Hydra looks for before it looks into other folders.
    Yields the groups that are chosen, and where to look for them, in Hydra's grammar. Errors:
    UserError naming the group.
    """
    words = _for_hydra(choice, recipe)
    with by_hydra.schema_stored(), ExitStack() as stack:
        if recipe and recipe.node is not None:
            of_recipe = stored(recipe.name, recipe.node, recipes.GROUP, "_global_")
            stack.enter_context(of_recipe)
        if choice.primary.bodies:
            stack.enter_context(stored(choice.primary.name, choice.primary.for_hydra()))
        yield words


def _for_hydra(choice: Choice, recipe: recipes.Taken | None) -> list[str]:
    words = [_chosen(setting, choice) for setting in choice.groups.values()]
    words = [word for word in words if word and not word.startswith(f"{recipes.GROUP}=")]
    if recipe and recipe.node is not None:
        words.append(f"{recipes.GROUP}={_quoted(recipe.name)}")
    if places := outside.search_path(choice.config_dirs, choice.search_path):
        words.append(f"hydra.searchpath=[{','.join(map(_quoted, places))}]")
    return words


def recipe_of(choice: Choice) -> recipes.Taken | None:
    """Return what a run takes of a published recipe, None where it has none."""
    return _recipe(choice)[0]


def _recipe(choice: Choice) -> tuple[recipes.Taken | None, set[str]]:
    """Return what a run takes of a recipe, and the keys that files of the user's own set.

    Segtrain's own experiments are recipes, and its ablations are whole; nothing is below them.
    """
    chosen = choice.primary.chosen | {
        key.partition("@")[0]: settings.unquoted(setting.text)
        for key, setting in choice.groups.items()
    }
    experiment = chosen.get("experiment", "null")
    named = chosen.get(recipes.GROUP, "null")
    if named != "null" and (wrong := suggest.unknown_names([named], recipes.GROUP, choice.names)):
        raise UserError(f"recipe={named}: {wrong}")
    if experiment in recipes.names():
        if named != "null":
            raise UserError(
                f"recipe={named}: experiment={experiment} is a recipe itself; leave out one of them"
            )
        return recipes.itself(experiment), set()
    if chosen.get("ablation", "null") in suggest.groups().get("ablation", []):
        return None, set()
    body = _own_experiment(experiment, choice)
    chosen = choice.primary.chosen | headers.chosen_by(body) | chosen
    row = recipes.row_of(chosen)
    whole = not choice.primary.on_ours and named == "null"
    if row is None or whole:
        return None, set()
    weights = [setting.text for setting in choice.values if setting.key == "model.weights"]
    from_file = bool(weights) and weights[-1] not in ("imagenet", "features", "null")
    set_by_file = {key for each in (body, *choice.primary.bodies) for key in flat_keys(each)}
    own = {*set_by_file, *(setting.key for setting in choice.values)}
    return recipes.taken(row, chosen, own, from_file), set_by_file


def _own_experiment(name: str, choice: Choice) -> dict[str, Any]:
    """Return an experiment of the user's own as plain types; {} where there is none.

    Errors: UserError naming the file.
    """
    if name not in choice.names["experiment"]:
        return {}
    folders = outside.folders_of(choice.config_dirs, choice.search_path)
    for folder in (*folders, *trust.conf_folders().values()):
        file = folder / "experiment" / f"{name}.yaml"
        if file.is_file():
            return load_yaml(file)
    return {}


def _chosen(setting: Setting, choice: Choice) -> str:
    """Return the choice of a group in Hydra's grammar, "" where nothing is chosen, as by default.

    Errors: UserError naming the group.
    """
    group, at, package = setting.key.partition("@")
    text = settings.unquoted(setting.text)
    if setting.text == "null":
        if group in MAY_BE_NONE:
            return ""
        none = f"; none at all is {group}=[]" if group == "writer" else ""
        raise UserError(f"{setting.word}: a {group} is chosen by its name{none}")
    listed = text.startswith("[") and text.endswith("]")
    names = settings.split_commas(text[1:-1] if listed else setting.text)
    names = [settings.unquoted(name) for name in names if name]
    if not listed and len(names) > 1:
        raise UserError(
            f"{setting.word}: several values are several runs: segtrain -m {setting.word}"
        )
    wrong = suggest.unknown_names(names, group, choice.names)
    if wrong and not any(place.startswith("pkg://") for place in choice.search_path):
        raise UserError(f"{group}={setting.text}: {wrong}")
    sign = "" if choice.primary.lists(group) else "+"
    value = f"[{','.join(map(_quoted, names))}]" if listed else _quoted(names[0])
    return f"{sign}{group}{at}{package}={value}"


def _quoted(name: str) -> str:
    """Return a name in quotes, as Hydra's grammar reads them."""
    escaped = name.replace("\\", "\\\\").replace("'", "\\'") if "'" in name else name
    return f"'{escaped}'"


def folder_of(cfg: DictConfig, key: str, choice: Choice) -> Path:
    """Return one of Hydra's folders of a composed config. Errors: UserError."""
    try:
        text = str(OmegaConf.select(cfg, key))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {one_line(error)}") from error
    outside.check_written(key, text, choice.typed(key))
    return Path(settings.as_text(text)) if text.startswith("~") else Path(text)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's node."""
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def sweep_params(cfg: DictConfig) -> dict[str, Any]:
    """Return `hydra.sweeper.params` of a composed config as plain types."""
    return _plain(cfg.hydra.sweeper).get("params") or {}


def plain_run(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain types without Hydra's node, its interpolations as text."""
    return {key: value for key, value in _plain(cfg).items() if key != "hydra"}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


# One value


def put(cfg: DictConfig, setting: Setting, names: Mapping[str, list[str]]) -> None:
    """Put the value of a setting into a config, or take the key of `~key` out.

    `names` are the config groups. Errors: UserError naming the word that was typed.
    """
    plain = plain_run(cfg)
    if setting.sign == "~":
        _take_out(cfg, setting, plain)
        return
    hint = settings.hint_at(plain, setting.key)
    if hint is Unknown:
        known = [*names, *known_keys(plain)]
        raise UserError(
            f"{setting.key}: no such key{_no_argument(plain, setting.key)}."
            f"{suggest.written(setting.key, setting.text, known) or ' segtrain --help lists them'}"
        )
    value = settings.value(setting, hint)
    try:
        OmegaConf.update(cfg, setting.key, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        form = ""
        if type(value) in (int, float) and "list" in str(hint):
            form = f"; a list is written {setting.key}=[{setting.text}]"
        raise UserError(f"{setting.word}: {one_line(error)}{form}") from error


def _no_argument(plain: Mapping[str, Any], key: str) -> str:
    """Say which part has no such argument, where `key` is below a part."""
    node: Any = plain
    for word in key.split(".")[:-1]:
        node = node.get(word) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or "_target_" not in node:
        return ""
    name = str(node["_target_"]).rpartition(".")[2]
    if key in ("dataset.labels", "dataset.classes"):
        return f"; the classes of {name} are fixed, dataset=folder takes your own"
    return f"; {name} has no such argument"


def _take_out(cfg: DictConfig, setting: Setting, plain: Mapping[str, Any]) -> None:
    """Remove an argument of a part, which then has its own default. Errors: UserError."""
    part, _, rest = setting.key.partition(".")
    if part not in (*PARTS, "writer") or not rest:
        raise UserError(
            f"{setting.word}: only an argument of a part can be removed, e.g. ~model.weights; "
            f"other settings are set, {setting.key}{'' if rest else '.KEY'}=VALUE"
        )
    node: Any = plain
    *above, last = setting.key.split(".")
    for word in above:
        node = node.get(word) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or last not in node:
        raise UserError(
            f"{setting.word}: there is no {setting.key} to remove."
            f"{suggest.nearest_key(setting.key, flat_keys(plain))}"
        )
    with open_dict(cfg):
        del OmegaConf.select(cfg, ".".join(above))[last]


def known_keys(plain: Any) -> list[str]:
    """Return every key of a run, and every argument that its parts take."""
    keys = flat_keys(plain)
    for part in PARTS:
        node = plain.get(part)
        if not isinstance(node, Mapping) or "_target_" not in node:
            continue
        try:
            arguments = resolve(node["_target_"], f"{part}._target_").parameters
        except UserError:  # it is named when the run is checked
            continue
        keys += [f"{part}.{name}" for name in arguments if name not in parts.GIVEN[part]]
    return list(dict.fromkeys(keys))


# Checked


def check(cfg: Any) -> RunConf:
    """Return a composed config as a checked run. Errors: UserError."""
    try:
        missing = OmegaConf.missing_keys(cfg) if isinstance(cfg, DictConfig) else set()
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from error
    if missing:
        raise UserError(f"{', '.join(sorted(missing))}: must be set, e.g. {sorted(missing)[0]}=...")
    run = typed(cfg)
    parts.check(run)
    return run


def with_overrides(
    run: RunConf, overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> RunConf:
    """Return a stored run with groups chosen anew (`dataset=voc`) and values set.

    Another data set brings its own metric, as it does in training, unless `metric=` names one.
    Errors: UserError.
    """
    with left_alone():
        return _with_overrides(run, overrides, config_dirs)


def _with_overrides(
    run: RunConf, overrides: Sequence[str], config_dirs: Sequence[str | Path]
) -> RunConf:
    choice = sort_out(overrides, config_dirs)
    for setting in choice.hydra:
        if setting.key != "hydra.searchpath":  # where a part that is chosen anew may be found
            raise UserError(f"{setting.word}: says nothing about a run that is stored")
    chosen = {key.partition("@")[0] for key in choice.groups}
    if recipes.GROUP in chosen:
        raise UserError(f"{choice.groups[recipes.GROUP].word}: this run has been trained already")
    if "dataset" in chosen:
        chosen.add("metric")
    cfg = OmegaConf.structured(run)
    OmegaConf.set_struct(cfg, True)
    if chosen:
        # Unresolved: a window of ${dataset.crop} is that of the stored run, not of the default
        # data set.
        alone = choice.groups | {recipes.GROUP: settings.read(f"{recipes.GROUP}=null")}
        plain = plain_run(composed(choice._replace(values=[], groups=alone)))
        for name in chosen:
            cfg[name] = plain[name]
    for setting in choice.values:
        put(cfg, setting, choice.names)
    refuse_endless_references(plain_run(cfg), "config")
    run = typed(cfg)
    parts.check(run)
    return run
