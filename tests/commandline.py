"""Commands as a user types them, in this process: starting one costs seconds.

And what they leave behind.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtrain.commands import exit_codes, main

# The smallest network and batch for what needs a run, whatever it learns.
SMALL_RUN = (
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.batch_size=2",
    "train.device=cpu",
    "writer=[]",
)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def command_of(name: str) -> Callable[[list[str]], None]:
    """What a console script calls, imported as late as it does."""
    if name == "segtrain":
        return main.run
    from segtrain.commands import data, evaluate, predict, report

    return {
        "segeval": evaluate.run,
        "segpredict": predict.run,
        "segdata": data.run,
        "segreport": report.run,
    }[name]


def typed(name: str, *arguments: str) -> Ended:
    """Run `typed("segeval", "predictions=maps", ...)` and return its exit code and output."""
    command = command_of(name)
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            exit_codes.run_command(name, command, [*arguments, "log.progress=false"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


@contextmanager
def hydra_here() -> Generator[None]:
    """Let Hydra's own main function run in this process, and put back what it changes."""
    argv = sys.argv
    root = logging.getLogger()
    handlers = list(root.handlers)
    level = root.level
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    try:
        yield
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def done(name: str, *arguments: str) -> str:
    """What a command prints that must succeed without a word on stderr."""
    ended = typed(name, *arguments)
    assert (ended.code, ended.err) == (0, ""), ended
    return ended.out


def trained(run: Path, *arguments: str) -> Path:
    """The folder `run` with a run that must end well."""
    done("segtrain", f"hydra.run.dir={run}", *arguments)
    return run


def refused(code: int, words: list[str], name: str, *arguments: str) -> None:
    """The command ends with `code` and one line that holds all of `words`."""
    ended = typed(name, *arguments)
    assert ended.code == code, ended
    assert ended.err.startswith(f"{name}: "), ended
    assert ended.err.count("\n") == 1, ended
    for word in words:
        assert word in ended.err, (word, ended.err)


def numbers(folder: Path) -> dict[str, float]:
    """metrics.json without its protocol and the loss, which predictions of other programs do not
    have.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["protocol"]
    return {name: value for name, value in metrics.items() if not name.startswith("loss")}


def scored(folder: Path, predictions: Path, *arguments: str) -> dict[str, float]:
    """The numbers of `segeval predictions=`."""
    done("segeval", f"predictions={predictions}", f"eval.output={folder}", *arguments)
    return numbers(folder)


def save(path: Path, values: Any) -> Path:
    """An image or mask as PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def load(path: Path) -> np.ndarray:
    """The values of a file as stored."""
    with Image.open(path) as image:
        return np.array(image)
