"""Compose: from the command line to checked settings. The one door.

Hydra composes the groups that are chosen; every other setting is read by `settings.py` and put in
here, one by one, so that what is wrong is named by the word that was typed. Imports no torch: a
typo ends before it is loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
from segtrain.config.choice import FOLDERS, MAY_BE_NONE, Choice, sort_out
from segtrain.config.files import load_yaml
from segtrain.config.hydra_state import left_alone, stored
from segtrain.config.schema import PARTS, RunConf, one_line, typed
from segtrain.config.settings import Setting, Unknown
from segtrain.config.sources import resolve
from segtrain.config.suggest import flat_keys
from segtrain.errors import UserError

# Folders that a command makes or fills, if they are given.
WRITTEN = ("eval.output", "eval.submission", "dataset.cache")
OF_OURS = ("hydra.output_subdir", "hydra.job.chdir")  # what conf/train.yaml says beside them


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
        if not choice.primary.on_ours:
            by_hydra.take_unsaid(cfg, (*FOLDERS, *OF_OURS))
        outside.refuse_hydra_settings(_plain(cfg.hydra), by_hydra.own_node())
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
    choice = sort_out(overrides, config_dirs)
    with left_alone() if choice.groups else nullcontext():
        return _with_choice(run, choice)


def _with_choice(run: RunConf, choice: Choice) -> RunConf:
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
