"""Compose: from the command line to checked settings. The only door to Hydra's compose.

Imports no torch: a typo ends before it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segtrain.config import parts, suggest, trust
from segtrain.config.old_names import modern_overrides
from segtrain.config.schema import CONF_DIR, RunConf, one_line, typed
from segtrain.config.suggest import flat_keys, groups
from segtrain.errors import UserError, did_you_mean


def register_schema() -> None:
    """Tell Hydra the types of a run, which conf/train.yaml names as `schema`."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=RunConf)


def compose_config(
    overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> tuple[DictConfig, Path]:
    """Return the composed config, not yet checked, and the run folder that it names.

    `config_dirs` are folders with groups of a user's own, beside segtrain's. Errors: UserError
    with a suggestion.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    overrides = modern_overrides(overrides)
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: not understood; settings are written key=value")
    if not CONF_DIR.is_dir():
        raise UserError(f"{CONF_DIR}: the configs are missing; install segtrain again")
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose(
                "train", with_search_path(overrides, config_dirs), return_hydra_config=True
            )
            HydraConfig.instance().set_config(cfg)
            folder = Path(str(cfg.hydra.run.dir))
    except Exception as error:
        if refuses_settings(error):
            raise UserError(explain(error, overrides, config_dirs)) from error
        if type(error).__module__.startswith(("omegaconf", "antlr4", "yaml")):
            raise UserError(one_line(error)) from error
        raise
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, folder


def refuses_settings(error: Exception) -> bool:
    """Tell whether an error is Hydra's word on settings that it cannot compose."""
    from hydra.errors import HydraException

    chosen_by_no_name = isinstance(error, ValueError) and "Config group override" in str(error)
    return isinstance(error, HydraException) or chosen_by_no_name


def with_search_path(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """Return `overrides` so that Hydra finds groups of `config_dirs` and trusted packages too.

    A `hydra.searchpath=[...]` among them is kept, as Hydra reads only one. Errors: UserError where
    a config of a trusted package has the name of one of ours, which Hydra would find first.
    """
    searched = [*config_dirs, *trust.conf_folders().values()]
    if not searched:
        return list(overrides)
    for conf in trust.conf_folders().values():
        for file in conf.glob("*/*.yaml"):
            if (CONF_DIR / file.relative_to(conf)).exists():
                raise UserError(
                    f"{file}: segtrain has a {file.parent.name}={file.stem} of its own, which "
                    "would be used instead; give the file another name"
                )
    key = "hydra.searchpath=["
    places = [f"'file://{Path(folder).absolute()}'" for folder in searched]
    places += [o.removeprefix(key).removesuffix("]") for o in overrides if o.startswith(key)]
    others = [o for o in overrides if not o.startswith(key)]
    return [*others, f"{key}{','.join(filter(None, places))}]"]


def explain(
    error: Exception, overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> str:
    """Return one of Hydra's errors as one line, with what was probably meant."""
    choices = groups(config_dirs)

    def known_keys() -> list[str]:
        chosen = [o for o in overrides if o.partition("=")[0] in choices and "," not in o]
        try:
            cfg, _ = compose_config(chosen, config_dirs)
        except UserError:  # the choice is wrong too, and is named when the key is right
            cfg, _ = compose_config([])
        return [*choices, *flat_keys(OmegaConf.to_container(cfg, resolve=False))]

    return suggest.explain(error, overrides, choices, known_keys)


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
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides = modern_overrides(overrides)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(one_line(error)) from error
    choices = groups(config_dirs)
    chosen = {
        override.key_or_group
        for override in parsed
        if override.key_or_group in choices and not isinstance(override.value(), dict)
    }
    if "dataset" in chosen:
        chosen.add("metric")
    own = [
        text
        for text, override in zip(overrides, parsed, strict=True)
        if override.key_or_group.split(".")[0] in chosen
    ]
    cfg = OmegaConf.structured(run)
    OmegaConf.set_struct(cfg, True)
    if chosen:
        composed, _ = compose_config(own, config_dirs)
        # Unresolved: a window of ${dataset.crop} is that of the stored run, not of the default
        # data set.
        plain = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(plain, dict)
        for name in chosen:
            cfg[name] = plain[name]
    known = flat_keys(OmegaConf.to_container(cfg, resolve=False))
    for override in parsed:
        key = override.key_or_group
        if key.split(".")[0] in chosen:
            continue
        if key not in known and not override.is_force_add():
            raise UserError(f"{key}: no such key.{did_you_mean(key, known)}")
        try:
            OmegaConf.update(
                cfg, key, override.value(), merge=True, force_add=override.is_force_add()
            )
        except OmegaConfBaseException as error:
            raise UserError(f"{override.input_line}: {one_line(error)}") from error
    run = typed(cfg)
    parts.check(run)
    return run
