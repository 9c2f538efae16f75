"""`segtrain -m`: one run folder per combination of settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segtrain.commands.train import start
from segtrain.config import trust
from segtrain.config.compose import (
    check,
    explain,
    refuses_settings,
    register_schema,
    with_search_path,
)
from segtrain.config.files import masked_container
from segtrain.config.old_names import modern_overrides
from segtrain.config.schema import CONF_DIR
from segtrain.errors import Interrupted, SegtrainError, UserError

MAX_NAME_LENGTH = 200  # characters of a folder's name; file systems end at 255 bytes


def run(arguments: list[str]) -> None:
    """Train one run per combination of `-m`.

    Jobs go on when one fails; the command then fails at the end.
    """
    packages = list(trust.folders())

    def job(cfg: Any) -> None:
        with trust.trusting(packages):  # a launcher of Hydra's may call us in another process
            _job(cfg)

    hydra_main(job, [*arguments, *_short_names(arguments)])


def _short_names(arguments: Sequence[str]) -> list[str]:
    """Name run folders by the swept settings alone where all of them would make no file name.

    That is where they are too long together, or one holds a path.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    settings = [a for a in arguments if not a.startswith(("-", "hydra."))]
    named = [a for a in settings if not a.startswith("dataset.root=")]
    fits = len(",".join(settings)) <= MAX_NAME_LENGTH and not any(
        "/" in a.partition("=")[2] for a in named
    )
    if fits or any("override_dirname" in a for a in arguments):
        return []
    try:
        fixed = [
            o.key_or_group
            for o in OverridesParser.create().parse_overrides(settings)
            if not o.is_sweep_override()
        ]
    except HydraException:
        return []  # Hydra says itself what is wrong
    keys = ",".join(f"'{key}'" for key in ["dataset.root", *fixed])
    return [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"]


def hydra_main(task: Callable[[Any], None], arguments: list[str]) -> None:
    """Let Hydra compose what `arguments` say, and call `task` with each config.

    Errors: UserError.
    """
    import hydra

    arguments = with_search_path(modern_overrides(arguments))
    register_schema()
    # Lets exceptions through: `run_command` turns them into one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["segtrain", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")(task)()
    except Exception as error:
        if not refuses_settings(error):
            raise
        raise UserError(explain(error, arguments)) from error


def print_nothing(cfg: Any) -> None:
    """Do nothing, where Hydra itself answers (`--cfg`, `--info`)."""


def _job(cfg: Any) -> None:
    """Train one combination. What ends it is said at once; the other jobs still run."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    print(f"[{settings.job.num}] {settings.job.override_dirname or 'default'}", flush=True)
    try:
        start(check(cfg), masked_container(cfg), folder, list(settings.overrides.task), again=True)
    except Interrupted as error:
        print(f"segtrain: {error}; the same sweep command runs what is missing", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except SegtrainError as error:
        print(f"segtrain: job {settings.job.num}: {error}", file=sys.stderr)
        raise
