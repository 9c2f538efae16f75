"""`segtrain --cfg`, `--info`, `--hydra-help`: print, and train nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from segtrain.config import compose, primary
from segtrain.config.choice import Choice, sort_out
from segtrain.config.files import as_yaml
from segtrain.config.hydra_state import version_base
from segtrain.config.schema import CONF_DIR
from segtrain.errors import UserError

CONFIGS = ("job", "hydra", "all")


def run(flag: str, flags: Mapping[str, Sequence[str]], overrides: Sequence[str]) -> None:
    """Print what `flag` asks for of the run that `overrides` compose. Errors: UserError."""
    name = flags.get(primary.FLAG, [primary.OURS])[-1]
    choice = sort_out(overrides, flags.get("--config-dir", ()), True, name)
    cfg = compose.composed(choice)
    if flag != "--cfg":
        hydra_prints([flag, *filter(None, flags[flag])], choice)
        return
    which = flags["--cfg"][-1]
    if which not in CONFIGS:
        raise UserError(f"--cfg {which}: say which config to print: {', '.join(CONFIGS)}")
    if which == "job":
        cfg = compose.without_hydra(cfg)
    elif which == "hydra":
        cfg = cfg["hydra"]
    print(as_yaml(cfg, flags.get("--package", [""])[-1], resolve="--resolve" in flags), end="")


def hydra_prints(question: Sequence[str], choice: Choice) -> None:
    """Let Hydra print its defaults, search path and plugins, of a composition that was checked."""
    import hydra

    main = hydra.main(config_path=str(CONF_DIR), config_name=choice.primary.name, **version_base())
    with compose.offered(choice, compose.recipe_of(choice)) as words:
        sys.argv = ["segtrain", *question, *words]
        main(lambda _: None)()
