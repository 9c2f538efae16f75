"""What a network reads: decided once, when a run begins, and told by its checkpoints.

`layers.preprocess` says what goes with which weights. Nothing is derived at loading, where the
weights that the run started from are not at hand.
"""

from __future__ import annotations

from torch import nn

from segtrain.checkpoints import reading
from segtrain.checkpoints.manifest import Checkpoint
from segtrain.config import places
from segtrain.config.schema import RunConf
from segtrain.layers.preprocess import preprocess, preprocess_of, take_input


def as_trained(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Let a network read what the weights of its checkpoint were trained on. Errors: UserError."""
    take_input(network, reading.input_of(checkpoint), f"{checkpoint.path}: input")


def with_weights(run: RunConf, network: nn.Module, record: object, whole: bool) -> list[str]:
    """Let a new run's network read what the weights of `train.init` were trained on, and say so.

    Returns lines to print. What the user typed stands; then the line says that it is not what the
    weights had. `whole`: every tensor of the backbone came from there. Errors: UserError for a
    record that is none.
    """
    own = preprocess_of(network)
    if own is None or record is None:
        return []
    where = f"train.init={places.as_stored(run.train.init)}: input"
    trained_on = preprocess(record, where)
    if trained_on.channels != own.channels and not whole:
        return []  # its first convolution did not fit: the table says so
    if run.model.get("input") is None:
        take_input(network, record, where)
        return [f"  model.input: {trained_on.told()}, what these weights were trained on"]
    if not trained_on.same(own):
        return [f"  model.input={own.told()}: these weights were trained on {trained_on.told()}"]
    return []


def apart(run: RunConf, network: nn.Module) -> list[str]:
    """Say in a line where a new run does not read what its `model.weights` were trained on."""
    backbone = dict(network.named_children()).get("backbone")
    own = preprocess_of(network)
    usual = None if backbone is None else preprocess_of(backbone)
    typed = run.model.get("input") is not None and run.model.get("weights") is not None
    if not typed or own is None or usual is None or usual.same(own):
        return []
    return [f"input  {own.told()}; model.weights were trained on {usual.told()}"]
