"""What a user probably meant: the nearest word there is, and the form in which it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtrain.config import recipes, trust
from segtrain.config.schema import CONF_DIR
from segtrain.errors import did_you_mean

MAX_NAMES = 20  # of a group that are listed in a message
Groups = Mapping[str, list[str]]  # config group -> the names in it

# What other programs call our settings: name -> (key, what to know).
ELSEWHERE = {
    "amp": ("train.precision", "bf16, fp16 or fp32"),
    "arch": ("model", ""),
    "backbone": ("model.backbone", ""),
    "base_lr": ("optimizer.lr", ""),
    "batch_size": ("train.batch_size", "images per update over all processes"),
    "bs": ("train.batch_size", "images per update over all processes"),
    "checkpoint": ("train.init", "weights to start from; resume=RUN goes on with a run"),
    "crop": ("dataset.crop", "[height,width]"),
    "crop_size": ("dataset.crop", "[height,width]"),
    "data": ("dataset.root", ""),
    "data_dir": ("dataset.root", ""),
    "data_root": ("dataset.root", ""),
    "datadir": ("dataset.root", ""),
    "debug": ("train.steps", "a few updates show whether a run works"),
    "device": ("train.device", "cpu, cuda or auto"),
    "devices": ("train.processes", "one per GPU"),
    "epoch": ("train.steps", "updates; an epoch is images / train.batch_size of them"),
    "epochs": ("train.steps", "updates; an epoch is images / train.batch_size of them"),
    "gpu": ("train.processes", "one per GPU; CUDA_VISIBLE_DEVICES says which"),
    "gpus": ("train.processes", "one per GPU"),
    "image_size": ("dataset.crop", "[height,width]"),
    "img_size": ("dataset.crop", "[height,width]"),
    "input_size": ("dataset.crop", "[height,width]"),
    "iterations": ("train.steps", ""),
    "iters": ("train.steps", ""),
    "learning_rate": ("optimizer.lr", ""),
    "lr": ("optimizer.lr", ""),
    "log_dir": ("hydra.run.dir", ""),
    "logdir": ("hydra.run.dir", ""),
    "max_epochs": ("train.steps", "updates; an epoch is images / train.batch_size of them"),
    "max_iter": ("train.steps", ""),
    "max_iters": ("train.steps", ""),
    "max_steps": ("train.steps", ""),
    "name": ("hydra.run.dir", ""),
    "network": ("model", ""),
    "ngpus": ("train.processes", "one per GPU"),
    "nproc_per_node": ("train.processes", ""),
    "num_epochs": ("train.steps", "updates; an epoch is images / train.batch_size of them"),
    "num_gpus": ("train.processes", "one per GPU"),
    "num_workers": ("train.workers", "loader processes per training process"),
    "out_dir": ("hydra.run.dir", ""),
    "output": ("hydra.run.dir", ""),
    "output_dir": ("hydra.run.dir", ""),
    "precision": ("train.precision", "bf16, fp16 or fp32"),
    "pretrained": ("model.weights", "imagenet or null"),
    "root": ("dataset.root", ""),
    "run_dir": ("hydra.run.dir", ""),
    "save_dir": ("hydra.run.dir", ""),
    "seed": ("train.seed", ""),
    "steps": ("train.steps", ""),
    "wd": ("optimizer.weight_decay", ""),
    "weight_decay": ("optimizer.weight_decay", ""),
    "work_dir": ("hydra.run.dir", ""),
}


def groups(folders: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Return the config groups and the names in each.

    They are segtrain's own, those of `folders` and those of trusted packages.
    """
    names: dict[str, list[str]] = {}
    for base in (CONF_DIR, *map(Path, folders), *trust.conf_folders().values()):
        for folder in sorted(path for path in base.iterdir() if path.is_dir()):
            if folder.name.startswith(".") or folder.name == "hydra":
                continue
            own = (str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
            names[folder.name] = sorted({*names.get(folder.name, []), *own})
    return {**names, recipes.GROUP: recipes.names()}


def own_groups() -> list[str]:
    """Return the names of segtrain's own groups, which are chosen in conf/train.yaml."""
    return sorted([*(path.name for path in CONF_DIR.iterdir() if path.is_dir()), recipes.GROUP])


def written(key: str, text: str, known: Sequence[str]) -> str:
    """Return in which form a setting is written that is not called `key`, "" where nobody knows.

    `text` is its value; `known` are the keys and groups there are.
    """
    name = key.rpartition(".")[2].lower().replace("-", "_")
    if name in ELSEWHERE and ELSEWHERE[name][0] != key:
        setting, note = ELSEWHERE[name]
        value = "..." if "epoch" in name or not text else text
        return f" Write {setting}={value}{f' ({note})' if note else ''}"
    same = [k for k in known if k.rpartition(".")[2] == name]
    if "." not in key and same:
        value = text or "..."
        return f" Write {' or '.join(f'{name}={value}' for name in same)}"
    return nearest_key(key, known)


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest known key, or at what the key's parent holds."""
    parent, _, last = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    if not parent or not siblings:
        return did_you_mean(key, known)
    # By the last part alone: the parent that all of them share would make every key similar.
    near = did_you_mean(last, siblings)
    return near.replace("`", f"`{parent}.", 1) if near else f" {parent} has {', '.join(siblings)}"


def unknown_names(names: Iterable[str], group: str, choices: Groups) -> str:
    """Return what is wrong with names that a group does not have, "" where it has all of them."""
    for name in names:
        if name not in choices[group]:
            there = ", ".join(choices[group][:MAX_NAMES])
            if len(choices[group]) > MAX_NAMES:
                there += f" and {len(choices[group]) - MAX_NAMES} more (segtrain --help)"
            return f"no such {group}; there are {there}.{did_you_mean(name, choices[group])}"
    return ""


def flat_keys(plain: Any, prefix: str = "") -> list[str]:
    """Return every dotted key of a nested mapping."""
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys
