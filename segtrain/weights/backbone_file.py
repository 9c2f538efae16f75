"""Start a backbone from a file of published weights, `model.weights=FILE`.

The file is read when a run begins. Whoever loads or resumes the run reads its own checkpoint, and
builds the network as from scratch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segtrain.errors import UserError, did_you_mean
from segtrain.weights.family import require_finite

NAMES = ("imagenet", "features")  # torchvision's, which are no files
COUNTER = "num_batches_tracked"  # of batch norm; no result depends on it
# Styles of ResNets whose weights are alike: only the stem's pool rounds otherwise.
ALIKE = ({"caffe", "msra"},)

_unread: ContextVar[bool] = ContextVar("unread", default=False)


@contextmanager
def unread() -> Generator[None]:
    """Let networks be built from scratch inside the block: a checkpoint will fill them."""
    token = _unread.set(True)
    try:
        yield
    finally:
        _unread.reset(token)


def split(weights: str | Path | None) -> tuple[Any, Path | None]:
    """Return a backbone's `weights` as (name of torchvision's, file); one of them is None."""
    if weights is None or _unread.get():
        return None, None
    return (None, weights) if isinstance(weights, Path) else (weights, None)


def fill(backbone: nn.Module, file: Path, **arguments: Any) -> str:
    """Load a backbone's tensors from `file`, all of them, and name the input that they read.

    `arguments` are those of the backbone that a family may read off a file: its name, style, norm
    or layout. Errors: UserError, in one line.
    """
    state, theirs, reads = _read(file)
    apart = [key for key, value in theirs.items() if not _alike(arguments.get(key), value)]
    if apart:
        raise UserError(
            f"model.weights={file}: holds a backbone of {_told(theirs, apart)}, the model has "
            f"{_told(arguments, apart)}"
        )
    wanted = backbone.state_dict()
    mine = {
        key.removeprefix("backbone."): value
        for key, value in state.items()
        if key.startswith("backbone.")
    }
    strange = [key for key in mine if key not in wanted and not key.endswith(COUNTER)]
    missing = [key for key in wanted if key not in mine]
    other = [key for key in wanted if key in mine and wanted[key].shape != mine[key].shape]
    for keys, what in ((missing, "is not in it"), (other, "has another shape in it")):
        if keys:
            raise UserError(
                f"model.weights={file}: does not fit the backbone: {keys[0]} {what}{_more(keys)}"
            )
    if strange:
        raise UserError(
            f"model.weights={file}: does not fit the backbone, which has no {strange[0]}"
            f"{_more(strange)}; weights of batch norm need norm=batch or norm=frozen"
        )
    require_finite(mine, f"model.weights={file}")
    backbone.load_state_dict({key: mine[key] for key in wanted})
    return reads


def classifier_of(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Return fc6 and fc7 of a file as torchvision's classifiers call them; None where it has none.

    `shapes` are those that they must have. Errors: UserError.
    """
    state, _, _ = _read(file)
    if not any(key.startswith("classifier.") for key in state):
        return None
    for key, shape in shapes.items():
        if key not in state or tuple(state[key].shape) != shape:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise UserError(f"model.weights={file}: {key} has to be {shape}, the file has {found}")
    found = {key: state[key] for key in shapes}
    require_finite(found, f"model.weights={file}")
    return found


def _read(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any], str]:
    """Return the tensors of a backbone's file by our names, its arguments, and its input."""
    if not file.exists() and not file.with_name(f"{file.name}.index").exists():
        near = did_you_mean(str(file), NAMES)
        raise UserError(
            f"model.weights={file}: no such file, nor a name.{near} There are imagenet "
            "(torchvision's), and null to start from scratch"
        )
    from segtrain.weights.families import read_published  # only now: most runs need no family

    recognised = read_published(file)
    published = recognised.published
    if published.model:
        raise UserError(
            f"model.weights={file}: holds a whole network of {recognised.family.name}; start from "
            "it with train.init=FILE model.weights=null"
        )
    return recognised.state, published.arguments, published.input


def _alike(mine: object, theirs: object) -> bool:
    return mine == theirs or any({mine, theirs} <= styles for styles in ALIKE)


def _told(arguments: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key}={arguments.get(key)}" for key in keys)


def _more(keys: list[str]) -> str:
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""
