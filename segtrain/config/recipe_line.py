"""What the first line of a run says of its recipe: the published number, and what differs here.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from segtrain.config import headers, recipes
from segtrain.config.compose import check, compose_config
from segtrain.config.hydra_state import left_alone
from segtrain.config.schema import PARTS, RunConf

# Of `train`, what changes the numbers that a run ends with.
OF_TRAIN = ("steps", "batch_size", "aspect_groups", "clip", "ema", "bn_batches", "sync_bn", "init")
# Of a data set: where it lies on a machine.
PLACES = (
    *("dataset.root", "dataset.sbd", "dataset.cache", "dataset.split", "dataset.submission"),
    *("dataset.manifest", "dataset.allow_change"),
)
SHOWN = 8  # differences that are named one by one, chosen by hand: about three lines


def recipe_line(run: RunConf) -> str | None:
    """Return what a run's first line says of its recipe; None where it has none.

    Errors: UserError where the recipe is of another segtrain.
    """
    if run.recipe is None or run.recipe not in recipes.names():
        return None
    header = headers.read_header(recipes.FOLDER / f"{run.recipe}.yaml", headers.EXPERIMENT_KEYS)
    with left_alone():
        cfg, _ = compose_config([f"experiment={run.recipe}"])
        there = check(cfg)
    network = list(_of_network(run, there, header))
    different = network or list(_of_start(run, there, header))
    same_system = run.model["_target_"] == there.model["_target_"]
    values = list(_values(run, there, [part for part in PARTS if same_system or part != "loss"]))
    different += values[:SHOWN]
    if len(values) > SHOWN:
        different.append(f"{len(values) - SHOWN} more")
    number = re.match(r"[\d.]+", header.number)
    line = f"recipe {run.recipe}, {f'published {header.number}' if number else 'no number'}; "
    if not different:
        return f"{line}nothing differs here"
    not_ours = f": {number[0]} is not this run's number" if number else ""
    return f"{line}here {', '.join(different)}{not_ours}"


def _of_network(run: RunConf, there: RunConf, header: headers.Header) -> Iterator[str]:
    """Say which network the number belongs to, where it is another one."""
    system, _, variant = header.parts
    if run.model["_target_"] != there.model["_target_"]:
        yield f"another network (published with {system}, {variant})"
        return
    ours = {key: value for key, value in run.model.items() if key not in recipes.OF_THE_FILE}
    theirs = {key: value for key, value in there.model.items() if key not in recipes.OF_THE_FILE}
    if different := list(_different("model", ours, theirs)):
        yield f"another network (published with {variant}): {', '.join(different)}"


def _of_start(run: RunConf, there: RunConf, header: headers.Header) -> Iterator[str]:
    """Say what the network starts from, where it is not what the recipe's does."""
    command = header.commands("Run")[0][0]
    ours = run.model.get("weights")
    theirs = there.model.get("weights")
    needed = next((w for w in ("train.init=RUN", "model.weights=FILE") if w in command), None)
    if run.train.init is not None or not (needed or theirs) or ours not in (None, "imagenet"):
        return  # from a person's own file or run, of which nothing is known here
    published = header["Weights"].partition(" (")[0].partition(". ")[0]
    if ours is None or needed:
        start = "torchvision's ImageNet weights" if ours else "from scratch"
        yield f"{start} (published from {published}{f': {needed}' if needed else ''})"


def _values(run: RunConf, there: RunConf, parts: Sequence[str]) -> Iterator[str]:
    """Say which other settings differ that change numbers, `key=value (there value)`."""
    ours = asdict(run)
    theirs = asdict(there)
    for part in parts:
        if part == "model":
            continue
        if ours[part].get("_target_") == theirs[part].get("_target_"):
            yield from _different(part, ours[part], theirs[part])
        else:
            yield f"another {part} ({_name(ours[part])}, there {_name(theirs[part])})"
    for key in OF_TRAIN:
        yield from _different(f"train.{key}", ours["train"][key], theirs["train"][key])


def _different(key: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Say in which values a part of a config differs."""
    if key in PLACES or ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**theirs, **ours}:
            yield from _different(f"{key}.{name}", ours.get(name), theirs.get(name))
    else:
        yield f"{key}={_text(ours)} (there {_text(theirs)})"


def _name(node: dict[str, Any]) -> str:
    return str(node.get("_target_")).rpartition(".")[2]


def _text(value: Any) -> str:
    """Return a value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}: {_text(inner)}" for name, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
