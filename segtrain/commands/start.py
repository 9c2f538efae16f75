"""What `segtrain` makes of its words: recipes, resume, sweep, search, print, train. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.commands import (
    extend,
    find_lr,
    import_weights,
    list_recipes,
    replay,
    resume,
    show,
    sweep,
    train,
    trials,
)
from segtrain.commands.arguments import take
from segtrain.commands.flags import SHOWING, split_flags
from segtrain.config import primary, search
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container
from segtrain.errors import UserError
from segtrain.runtime import console

# What begins with a run or a file that is there, and the flags that have a meaning beside it.
ALONE = {"import": ("--config-dir",), "extend": (), "replay": (), "resume": ()}


def run(arguments: Sequence[str]) -> None:
    """Do what `segtrain ARGUMENTS` asks for. Errors: UserError, and those of what it does."""
    if arguments[:1] == ["recipes"]:
        list_recipes.run(arguments[1:])
        console.require_output()
        return
    flags, words = split_flags(arguments)
    config_dirs = flags.get("--config-dir", [])
    config_name = flags.get(primary.FLAG, [primary.OURS])[-1]
    shown = [flag for flag in SHOWING if flag in flags]
    if words[:1] == ["find_lr"]:
        if "-m" in flags or shown:
            raise UserError(f"find_lr: leave out either it or {(shown or ['-m'])[0]}")
        find_lr.run(words[1:], config_dirs, config_name)
        return
    for name, beside in ALONE.items():
        others = [flag for flag in flags if flag not in beside]
        if others and any(word.startswith(f"{name}=") for word in words):
            raise UserError(f"{name}=: stands alone; leave out {others[0]}")
    if any(word.startswith("import=") for word in words):
        import_weights.run(words, config_dirs)
        return
    if any(word.startswith("extend=") for word in words):
        extended, changes = take(words, "extend")
        extend.extend(Path(extended["extend"]), changes)
        return
    if any(word.startswith("replay=") for word in words):
        replayed, changes = take(words, "replay")
        replay.replay(Path(replayed["replay"]), changes)
        console.require_output()
        return
    taken, overrides = take(words, "resume")
    if "-m" in flags and shown:
        raise UserError(f"-m starts a sweep: leave out either -m or {shown[0]}")
    if shown:
        show.run(shown[0], flags, overrides)
        console.require_output()
    elif "resume" in taken:
        resume.resume(Path(taken["resume"]), overrides)
    elif "-m" in flags:
        several = trials if search.asked(overrides) else sweep
        several.run(overrides, config_dirs, config_name)
    else:
        start(overrides, config_dirs, config_name)


def start(
    overrides: list[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> None:
    """Compose and check one run, then train it."""
    for group, what in (("ablation", "an ablation is a sweep"), ("search", "a search is one")):
        swept = [a for a in overrides if a.startswith(f"{group}=") and a != f"{group}=null"]
        if swept:
            raise UserError(
                f"{swept[0]}: {what} of several runs; start it with segtrain -m {swept[0]}"
            )
    cfg, folder = compose_config(overrides, config_dirs, config_name)
    train.start(check(cfg), masked_container(cfg), folder, overrides)
