"""`segtrain find_lr`: find a learning rate by one short training in which it grows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.commands.arguments import take
from segtrain.config import primary
from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf
from segtrain.errors import DiskError, UserError
from segtrain.runtime import console
from segtrain.runtime.files import replace_file
from segtrain.runtime.run_folder import check_folder, holds_run

if TYPE_CHECKING:
    from segtrain.engine.rate_range import Point, Ramp, Reading

# fastai's: rates far below and above all that anybody trains with, and updates enough for a curve.
DEFAULTS = {"lowest": 1e-7, "highest": 10.0, "updates": 100}
MOST = 100_000  # updates; a range test is short
PICTURE = "find_lr.png"
TABLE = "find_lr.csv"
RULE = (
    "rule   where the smoothed loss falls fastest over log(optimizer.lr): the range test of Smith "
    "2017 (arXiv:1506.01186), read by fastai's rule `steep`"
)


def run(
    words: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> None:
    """Do what `segtrain find_lr [lowest=] [highest=] [updates=] [settings of the run]` asks for.

    It leaves a picture and a table in the run folder that the settings name, and no checkpoint.
    Errors: UserError, also where that folder holds a run; those of the parts.
    """
    taken, overrides = take(words, *DEFAULTS)
    numbers = {name: _number(name, taken.get(name)) for name in DEFAULTS}
    if not numbers["lowest"] < numbers["highest"]:
        raise UserError(
            f"lowest={numbers['lowest']:g}: must lie below highest={numbers['highest']:g}"
        )
    cfg, folder = compose_config(overrides, config_dirs, config_name)
    conf = check(cfg)
    check_folder(folder)
    if holds_run(folder):
        raise UserError(f"{folder}: holds a run; choose another hydra.run.dir")

    from segtrain.engine import rate_range
    from segtrain.logs.progress import Progress
    from segtrain.runtime import distributed

    if distributed.launched():
        raise UserError("find_lr: trains in one process; start it without torchrun or srun")
    if numbers["updates"] < rate_range.FEWEST:
        raise UserError(f"updates={numbers['updates']:g}: a curve has at least {rate_range.FEWEST}")
    ramp = rate_range.Ramp(numbers["lowest"], numbers["highest"], int(numbers["updates"]))
    size = conf.train.global_batch
    print(
        f"find_lr {ramp.updates} updates of {size} images, optimizer.lr from {ramp.lowest:g} to "
        f"{ramp.highest:g}",
        flush=True,
    )
    with (
        distributed.join(conf.train.device) as world,
        Progress(ramp.updates * size, "find_lr", enabled=conf.log.progress) as bar,
    ):
        curve = rate_range.range_test(
            conf, folder, ramp, world, lambda updates: bar.to(updates * size)
        )
    found = rate_range.reading(curve)
    _write(folder, conf, ramp, curve, found)
    rate = curve[found.steepest].rate
    if len(curve) < ramp.updates or not math.isfinite(curve[-1].loss):
        print(f"diverged at update {len(curve)}, optimizer.lr={curve[-1].rate:.2g}")
    print(f"{RULE}\nwritten to {folder / PICTURE} and {TABLE}\noptimizer.lr={rate:.2g}")
    console.require_output()


def _number(name: str, text: str | None) -> float:
    """Return an argument that is a number above 0. Errors: UserError."""
    if text is None:
        return DEFAULTS[name]
    try:
        value = int(text) if name == "updates" else float(text)
    except ValueError:
        kind = "a whole number" if name == "updates" else "a number"
        raise UserError(f"{name}={text}: {kind} is expected") from None
    if not 0 < value < math.inf:
        raise UserError(f"{name}={text}: must be above 0")
    if name == "updates" and value > MOST:
        raise UserError(f"{name}={text}: must be at most {MOST:,}")
    return value


def _write(folder: Path, conf: RunConf, ramp: Ramp, curve: Sequence[Point], found: Reading) -> None:
    """Leave the curve as picture and table. Errors: DiskError."""
    from segtrain.visualization.picture_files import png
    from segtrain.visualization.rate_curve import rate_curve

    rates = [point.rate for point in curve]
    losses = [point.loss for point in curve]
    part = str(conf.model["_target_"]).rpartition(".")[2]
    title = f"{part}, {conf.train.global_batch} images an update: loss over the learning rate"
    picture = rate_curve(rates, losses, found.smooth, found.steepest, title)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["update", "optimizer.lr", "loss", "smoothed"])
    for number, point in enumerate(curve):
        smooth = found.smooth[number] if number < len(found.smooth) else ""
        table.writerow([number + 1, point.rate, point.loss, smooth])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / TABLE, text.getvalue().encode())
        replace_file(folder / PICTURE, png(picture))
    except OSError as error:
        raise DiskError(
            f"{folder}: the curve could not be written ({error.strerror}); choose another folder"
        ) from error
