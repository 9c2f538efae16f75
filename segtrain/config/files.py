"""Config files: YAML read, checked and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.config.bounds import bounded_text, refuse_endless_references
from segtrain.config.old_names import modern
from segtrain.config.places import environment_as_text
from segtrain.config.schema import RunConf, one_line, typed
from segtrain.errors import UserError

ABSENT = "(not there)"


def load_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file as plain types, interpolations left as text.

    Errors: UserError naming the file.
    """
    try:
        text = bounded_text(path)
        loaded = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UserError:
        raise
    except Exception as error:  # the YAML library has errors of its own, with no common base
        raise UserError(f"{path}: not readable as YAML ({one_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds no mapping")
    return {str(key): value for key, value in loaded.items()}


def load_run(path: Path) -> RunConf:
    """Return the config of a run folder, with today's names. Errors: UserError."""
    return stored_run(load_yaml(path), str(path))


def stored_run(stored: Any, where: str) -> RunConf:
    """Return a stored config, which may come from a stranger, as a run with today's names.

    `where` names it in messages. Errors: UserError.
    """
    plain = modern(stored, where)  # first: it refuses what is nested without end
    check_resolvers(plain, where)
    refuse_endless_references(plain, where)
    return typed(plain, where)


def check_resolvers(plain: Any, where: str) -> None:
    """Refuse a config from elsewhere that asks for more than its own keys and the environment.

    Errors: UserError naming the resolver.
    """
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            check_resolvers(key, where)
            check_resolvers(value, where)
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            check_resolvers(value, where)
    elif isinstance(plain, str):
        for name in re.findall(r"\$\{\s*([^${}:]+):", plain):
            if name.strip() != "oc.env":
                raise UserError(
                    f"{where}: resolver `{name}` is not allowed in a stored config; only oc.env is"
                )


def masked_container(cfg: Any) -> dict[str, Any]:
    """Return a composed config as plain types, with its own interpolations resolved.

    `${oc.env:...}` stays text: what the environment holds may be a secret, so it never reaches a
    file. Errors: UserError.
    """

    try:
        with environment_as_text():
            plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def as_yaml(cfg: DictConfig, package: str = "", resolve: bool = False) -> str:
    """Return a composed config, or the part of it that `package` names, as YAML text.

    Errors: UserError where there is no such part, or a value that cannot be resolved.
    """
    try:
        shown = OmegaConf.select(cfg, package) if package else cfg
        if not OmegaConf.is_config(shown):
            raise UserError(f"--package {package}: the config holds no such part")
        return OmegaConf.to_yaml(shown, resolve=resolve)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from error


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Return plain types as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


def stored_text(plain: Mapping[str, Any]) -> str:
    """Return the config of a run as YAML text, which was read back as the very same run.

    Errors: UserError naming the first key that would not come back.
    """
    text = to_yaml(plain)
    back = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    if back != plain:
        assert isinstance(back, dict)
        lost = next(key for key in plain if key not in back or back[key] != plain[key])
        raise UserError(f"{lost}: {plain[lost]!r:.200} cannot be stored in config.yaml as it is")
    stored_run(back, "config.yaml")
    return text


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level of dotted keys. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (value before, value now) of every dotted key in which two plain configs differ.

    What only one of them has is `ABSENT` in the other.
    """
    old = flatten(before)
    new = flatten(now)
    pairs = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in [*old, *new]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
