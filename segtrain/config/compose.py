"""From the command line to a checked config: the home of Hydra's compose, and of messages that say what was meant.

No torch here: a typo ends before it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segtrain.config import parts
from segtrain.config.schema import CONF_DIR, RunConf, one_line, typed
from segtrain.errors import UserError, did_you_mean


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Config groups and the names in each, those of the user's own `--config-dir` too."""
    found: dict[str, list[str]] = {}
    for base in (CONF_DIR, *([Path(config_dir)] if config_dir else [])):
        for folder in sorted(d for d in base.iterdir() if d.is_dir()):
            found[folder.name] = sorted(
                {*found.get(folder.name, []), *(f.stem for f in folder.glob("*.yaml"))}
            )
    return found


def register_schema() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=RunConf)


def compose_config(
    overrides: Sequence[str], config_dir: str | None = None
) -> tuple[DictConfig, Path]:
    """(the composed config, the run folder it names). Errors: UserError with a suggestion."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: not understood; settings are written key=value")
    if not CONF_DIR.is_dir():
        raise UserError(f"{CONF_DIR}: the configs are missing; install segtrain again")
    register_schema()
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("train", [*overrides, *extra], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            folder = Path(str(cfg.hydra.run.dir))
    except HydraException as error:
        raise UserError(explain(error, overrides, config_dir)) from error
    except Exception as error:
        if type(error).__module__.startswith(("omegaconf", "hydra", "antlr4", "yaml")):
            raise UserError(one_line(error)) from error
        raise
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, folder


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None) -> str:
    """Hydra's message as one line, with what was probably meant."""
    text = one_line(error)
    cause = one_line(error.__cause__) if error.__cause__ is not None else ""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        options = groups(config_dir).get(group)
        if options and f"{group}/{value}'" in text.replace(f"{group}/ ", f"{group}/"):
            return f"{group}={value}: no such {group}; there are {', '.join(options)}.{did_you_mean(value, options)}"
        if f"'{key}'" in text and (
            "Could not override" in text or "not in struct" in text or "not in" in cause
        ):
            if key.startswith("hydra.") or (
                override.startswith("+") and "Could not append" in text
            ):
                break
            return f"{key}: no such key.{suggest_key(key, overrides, config_dir)}"
    for override in overrides:
        if type(error).__name__ == "OverrideParseException" and (
            override.partition("=")[2] in text or len(overrides) == 1
        ):
            return f"{override}: not understood; write key=value, lists as [1,2], quote what holds spaces or commas"
    detail = f" ({cause})" if cause and cause not in text else ""
    return f"{text}{detail}"


def suggest_key(key: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> str:
    """The nearest key or group of the config with the groups that were chosen."""
    known_groups = groups(config_dir)
    chosen = [o for o in overrides if o.partition("=")[0] in known_groups and "," not in o]
    try:
        cfg, _ = compose_config(chosen, config_dir)
    except UserError:  # the choice is wrong too, and is named when the key is right
        cfg, _ = compose_config([])
    known = [*known_groups, *flat_keys(OmegaConf.to_container(cfg, resolve=False))]
    parent = key.rpartition(".")[0]
    if parent not in known:
        return did_you_mean(key, known)
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    near = did_you_mean(
        key.rpartition(".")[2], siblings
    )  # by the last part: the common start would make all similar
    return near.replace("`", f"`{parent}.", 1) if near else f" {parent} has {', '.join(siblings)}"


def flat_keys(plain: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a nested mapping."""
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys


def check(cfg: Any) -> RunConf:
    """A composed config as a checked run. Errors: UserError."""
    try:
        missing = OmegaConf.missing_keys(cfg) if isinstance(cfg, DictConfig) else set()
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from error
    if missing:
        raise UserError(f"{', '.join(sorted(missing))}: must be set, e.g. {sorted(missing)[0]}=...")
    run = typed(cfg)
    parts.check(run)
    return run


def with_overrides(run: RunConf, overrides: Sequence[str]) -> RunConf:
    """A stored run with groups chosen anew (`dataset=voc`) and values set (`eval.flip=true`). Errors: UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(one_line(error)) from error
    chosen = {o.key_or_group for o in parsed if o.key_or_group in groups()}
    own = [
        text
        for text, o in zip(overrides, parsed, strict=True)
        if o.key_or_group.split(".")[0] in chosen
    ]
    cfg = OmegaConf.structured(run)
    OmegaConf.set_struct(cfg, True)
    if chosen:
        composed, _ = compose_config(own)
        for name in chosen:
            # unresolved: a window of ${dataset.crop} is the stored run's, not the default data set's
            cfg[name] = OmegaConf.to_container(composed, resolve=False)[name]  # ty: ignore
    known = flat_keys(OmegaConf.to_container(cfg, resolve=False))
    for override in parsed:
        if override.key_or_group.split(".")[0] in chosen:
            continue
        if override.key_or_group not in known and not override.is_force_add():
            raise UserError(
                f"{override.key_or_group}: no such key.{did_you_mean(override.key_or_group, known)}"
            )
        try:
            OmegaConf.update(
                cfg,
                override.key_or_group,
                override.value(),
                merge=True,
                force_add=override.is_force_add(),
            )
        except OmegaConfBaseException as error:
            raise UserError(f"{override.input_line}: {one_line(error)}") from error
    run = typed(cfg)
    parts.check(run)
    return run
