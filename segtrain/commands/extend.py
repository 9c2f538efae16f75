"""`segtrain extend=RUN train.steps=N`: train on where a run stands, to a new end.

The new run is a folder of its own, which begins with the newest checkpoint of the other: weights,
optimizer, loss scale and moving average. Images go on in the order of the longer run. The schedule
begins anew where the run stands and ends at the new last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.commands.arguments import take
from segtrain.commands.train import train
from segtrain.config.files import stored_text
from segtrain.engine.evidence import Told, changed, in_force, may_change, run_of
from segtrain.errors import UserError
from segtrain.runtime.files import replace_file
from segtrain.runtime.run_folder import FINGERPRINT, NewRun, check_run, claimed, started_in

# What belongs to the length of a run, beside places and what a resume may change.
OF_THE_LENGTH = ("train.steps", "train.eval_every", "train.save_every", "train.patience")


def extend(source: Path, words: Sequence[str]) -> None:
    """Begin the run that goes on from `source`, and train it. Errors: UserError."""
    taken, changes = take(words, "hydra.run.dir")
    check_run(source, "extend")
    for change in changes:
        key = change.partition("=")[0].lstrip("+")
        if key not in OF_THE_LENGTH and key.split(".")[0] != "schedule" and not may_change(key):
            raise UserError(
                f"{change}: an extended run keeps its settings; only {', '.join(OF_THE_LENGTH)}, "
                f"schedule and places change. For others begin a run with train.init={source}"
            )
    _, told = in_force(source)

    from segtrain.checkpoints import reading, writing  # only now: they import torch
    from segtrain.runtime.distributed import World

    newest = reading.latest(source / "checkpoints")
    if newest is None:
        raise UserError(f"extend={source}: holds no checkpoint to go on from")
    plain = changed(told.config, changes)
    steps = plain["train"]["steps"]
    if not isinstance(steps, int) or steps <= newest.step:
        raise UserError(
            f"extend={source}: stands at step {newest.step}; name the new last step, "
            f"train.steps={2 * newest.step}"
        )
    plain = {**plain, "train": {**plain["train"], "begin": newest.step}}
    folder = Path(taken.get("hydra.run.dir", f"{source}_to_{steps}"))
    place = started_in(source) or str(Path.cwd())
    run = run_of(plain, str(folder), place)
    new = NewRun(stored_text(plain), (f"extend={source}", *words), place)
    meta = {
        **newest.meta,
        "config": plain,
        "started_in": place,
        "extends": str(source),
        # They are of another folder, and the new run has measured nothing yet.
        "evaluated": False,
        "score": None,
        "best": None,
        "numbers": {},
    }
    with claimed(folder, new, World()):
        names = [file.removesuffix(".pt") for file in newest.files]
        payload = {name: newest.read(name) for name in names}
        writing.save(folder / "checkpoints", newest.step, payload, meta, keep=run.train.keep)
        (folder / "metrics.jsonl").touch()
        if (source / FINGERPRINT).is_file():  # the data are to be the same
            replace_file(folder / FINGERPRINT, (source / FINGERPRINT).read_bytes())
    print(f"{folder}: goes on from step {newest.step} of {source} to {steps}, by a new schedule")
    train(run, folder, Told(plain, place))
