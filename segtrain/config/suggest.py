"""What a user probably meant: Hydra's errors as one line, with the nearest word there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtrain.config import trust
from segtrain.config.schema import CONF_DIR, one_line
from segtrain.errors import did_you_mean

Groups = Mapping[str, list[str]]  # config group -> the names in it


def groups(config_dirs: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Return the config groups and the names in each.

    They are segtrain's own, those of `config_dirs` and those of trusted packages.
    """
    names: dict[str, list[str]] = {}
    for base in (CONF_DIR, *map(Path, config_dirs), *trust.conf_folders().values()):
        for folder in sorted(path for path in base.iterdir() if path.is_dir()):
            own = (file.stem for file in folder.glob("*.yaml"))
            names[folder.name] = sorted({*names.get(folder.name, []), *own})
    return names


def explain(
    error: Exception,
    overrides: Sequence[str],
    choices: Groups,
    known_keys: Callable[[], Sequence[str]],
) -> str:
    """Return Hydra's message as one line that names the setting at fault and what was meant.

    `choices` are the groups there are; `known_keys` gives every key of the config with the groups
    that `overrides` choose, and is called only where a key is unknown.
    """
    text = one_line(error)
    cause = one_line(error.__cause__) if error.__cause__ is not None else ""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        for name in _names(value) if group in choices else ():
            if f"{group}/{name}'" in text.replace(f"{group}/ ", f"{group}/"):
                options = choices[group]
                return (
                    f"{group}={value}: no such {group}; there are {', '.join(options)}."
                    f"{did_you_mean(name, options)}"
                )
        if group in choices and "override must be a string or a list" in text and value == "null":
            none = f"; none at all is {group}=[]" if group == "writer" else ""
            return f"{override}: a {group} is chosen by its name{none}"
        unknown = "Could not override" in text or "not in struct" in text or "not in" in cause
        if f"'{key}'" in text and unknown:
            if key.startswith("hydra.") or (
                override.startswith("+") and "Could not append" in text
            ):
                break
            return f"{key}: no such key.{nearest_key(key, known_keys())}"
    for override in overrides:
        if type(error).__name__ == "OverrideParseException" and (
            override.partition("=")[2] in text or len(overrides) == 1
        ):
            return (
                f"{override}: not understood; write key=value, lists as [1,2], "
                "quote what holds spaces or commas"
            )
    detail = f" ({cause})" if cause and cause not in text else ""
    return f"{text}{detail}"


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest known key, or at what the key's parent holds."""
    parent, _, last = key.rpartition(".")
    if parent not in known:
        return did_you_mean(key, known)
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    # By the last part alone: the parent that all of them share would make every key similar.
    near = did_you_mean(last, siblings)
    return near.replace("`", f"`{parent}.", 1) if near else f" {parent} has {', '.join(siblings)}"


def flat_keys(plain: Any, prefix: str = "") -> list[str]:
    """Return every dotted key of a nested mapping."""
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys


def _names(value: str) -> list[str]:
    """The names that a choice lists: `a`, `[a,b]`."""
    return [name.strip() for name in value.strip("[]").split(",") if name.strip()]
