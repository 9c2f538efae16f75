"""Places: the settings that say where files lie.

They differ between machines. So a resume may change them, they alone may hold an environment
variable, and what a variable holds is told nowhere: messages, protocols and checkpoints have the
text that stands in the config. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import omegaconf
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from segtrain.errors import UserError

if TYPE_CHECKING:
    from segtrain.config.schema import RunConf

# An argument of a data set is a place where the last word of its name is one of these
# (`val_images`); so it is for a trusted package's, too.
FROM_WORKING_FOLDER = (
    *("root", "cache", "sbd", "proposals", "annotations", "manifest"),
    *("file", "files", "path", "paths", "folder", "folders", "dir", "dirs"),
)
BELOW_ROOT = ("images", "masks", "lists", "classes")  # of `root`, where the data set has one
OF_INFERENCE = ("inference.boxes.source", "inference.partner")
# Read at the start, or typed each time.
OF_RUN = ("train.init", "model.weights", "eval.output", "eval.submission")
NAMED_WEIGHTS = ("imagenet", "features")  # values of model.weights that are no places

_stored: dict[str, str] = {}  # value in use -> text in the config, of what this process has read
_masked: ContextVar[bool] = ContextVar("masked", default=False)


def resumable(key: str) -> bool:
    """Tell whether a dotted key names a place that a resume may change."""
    group, _, name = key.partition(".")
    of_dataset = group == "dataset" and _word(name) in (*FROM_WORKING_FOLDER, *BELOW_ROOT)
    return of_dataset or key in OF_INFERENCE


def is_place(key: str) -> bool:
    """Tell whether a dotted key names a place."""
    return resumable(key) or key in OF_RUN


def _word(name: str) -> str:
    """Return the last word of an argument of a data set; "" for what stands deeper."""
    return "" if "." in name else name.rpartition("_")[2]


# ---------------------------------------------------------------------- environment variables


@contextmanager
def environment_as_text() -> Generator[None]:
    """Let `${oc.env:X}` resolve to itself inside the block, wherever it stands."""

    def mask(name: str, *default: object) -> str:
        words = [name, *("null" if word is None else str(word) for word in default)]
        return "${oc.env:" + ",".join(words) + "}"

    if _masked.get():  # a block inside another one
        yield
        return
    token = _masked.set(True)
    try:
        with resolvers_kept():
            register_resolver("oc.env", mask)
            yield
    finally:
        _masked.reset(token)


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Register a resolver in place of one of this name, by the name that OmegaConf has for it."""
    if omegaconf.__version__.startswith("2.3."):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    else:
        OmegaConf.register_resolver(name, resolver, replace=True)


@contextmanager
def resolvers_kept() -> Generator[None]:
    """Put the resolvers of OmegaConf back after the block, which another program may have set."""
    before = BaseContainer._resolvers
    BaseContainer._resolvers = dict(before)
    try:
        yield
    finally:
        BaseContainer._resolvers = before


def check_environment(told: Any) -> None:
    """Refuse an environment variable outside of places.

    `told` is a config resolved inside `environment_as_text`. Errors: UserError naming the key.
    """
    for key, value in _leaves(told):
        if "${" in value and not is_place(key):
            raise UserError(
                f"{key}: {value:.80} is not understood here; an environment variable may stand "
                "only where files are named, such as dataset.root; write the value itself"
            )


def remember(told: Any, used: Any) -> None:
    """Note which text of a config stands for which value, of those with environment variables."""
    values = dict(_leaves(used))
    for key, text in _leaves(told):
        if "${" in text and text != (value := values.get(key, text)):
            _note(value, text)


def _note(value: str, text: str) -> None:
    for written in (value, str(Path(value)), str(Path(value).expanduser())):
        if written.strip("./~"):
            _stored.setdefault(written, text)


def hidden(message: str) -> str:
    """Return a message with the text of the config in place of what its variables hold."""
    for value in sorted(_stored, key=len, reverse=True):
        text = _stored[value]
        if "${" in text and value in message:
            whole = rf"(?<![\w/.-]){re.escape(value)}(?![\w-])"
            message = text.join(re.split(whole, message))
    return message


def as_stored(node: Any) -> Any:
    """Return plain values as their config has them, for what is written down."""
    if isinstance(node, Mapping):
        return {key: as_stored(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [as_stored(value) for value in node]
    return _stored.get(node) or hidden(node) if isinstance(node, str) else node


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested plain values with its dotted key."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")


# ---------------------------------------------------------------------- where a run was started


def from_start(run: RunConf, started_in: str | None) -> RunConf:
    """Return a stored run whose relative places mean the folder that it was started in.

    A place that is not there (any more) is left as it is: it means the current folder. So are all
    of a run of before, which does not say where it was started.
    """
    if started_in is None:
        return run
    dataset = {
        name: _there(value, started_in) if _from_working_folder(name, run.dataset) else value
        for name, value in run.dataset.items()
    }
    inference = dict(run.inference)
    if "partner" in inference:
        inference["partner"] = _there(inference["partner"], started_in)
    if isinstance(inference.get("boxes"), dict) and "source" in inference["boxes"]:
        source = _there(inference["boxes"]["source"], started_in)
        inference["boxes"] = {**inference["boxes"], "source": source}
    model = dict(run.model)
    if model.get("weights") not in (None, *NAMED_WEIGHTS):
        model["weights"] = _there(model["weights"], started_in)
    train = replace(run.train, init=_there(run.train.init, started_in))
    return replace(run, model=model, dataset=dataset, inference=inference, train=train)


def typed_now(key: str, value: Any, dataset: Mapping[str, Any]) -> Any:
    """Return a value that was typed for a stored run: a relative place means the current folder."""
    group, _, name = key.partition(".")
    place = key in OF_INFERENCE or (group == "dataset" and _from_working_folder(name, dataset))
    there = place and _relative(value) and (Path.cwd() / value)
    return str(there) if there and there.exists() else value


def _from_working_folder(name: str, dataset: Mapping[str, Any]) -> bool:
    below = () if "root" in dataset else BELOW_ROOT
    return _word(name) in (*FROM_WORKING_FOLDER, *below)


def _relative(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.startswith(("~", "/", "${"))


def _there(value: Any, started_in: str) -> Any:
    if not _relative(value) or not Path(started_in, value).exists():
        return value
    there = str(Path(started_in, value))
    _stored.setdefault(there, value)
    return there
