"""Configs as YAML files: read, checked, written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.config.old_names import modern
from segtrain.config.schema import RunConf, one_line, typed
from segtrain.errors import UserError


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain types, interpolations left as text. Errors: UserError naming the file."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # the YAML library has a family of its own
        raise UserError(f"{path}: not readable as YAML ({one_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds no mapping")
    return {str(key): value for key, value in loaded.items()}


def load_run(path: Path) -> RunConf:
    """The config of a run folder. Errors: UserError."""
    plain = load_yaml(path)
    check_resolvers(plain, str(path))
    return typed(modern(plain, str(path)))


def check_resolvers(plain: Any, where: str) -> None:
    """A config from elsewhere may read our own keys and the environment, nothing else. Errors: UserError."""
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
    """A composed config as plain types: our own interpolations resolved, `${oc.env:...}` left as text.

    What the environment holds may be a secret, so it never reaches a file.
    """

    def mask(name: str, *default: str | None) -> str:
        return (
            "${oc.env:"
            + ",".join([name, *("null" if d is None else str(d) for d in default)])
            + "}"
        )

    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", mask, replace=True)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from error
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain types as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))
