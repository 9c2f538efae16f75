"""Mistakes that only the built parts show: found before the first step, or before a checkpoint is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segtrain.config.schema import TrainConf
from segtrain.errors import InternalError, UserError, did_you_mean
from segtrain.runtime.distributed import World

WAYS_OUT = "A lower optimizer.lr, train.clip=1 or train.precision=fp32 are the usual ways out"


def batch_share(train: TrainConf, network: nn.Module, world: World) -> None:
    """Batch statistics over a single value are undefined. Errors: UserError."""
    micro = train.batch_size // (world.size * train.accumulate)
    least = getattr(network, "min_train_batch", 1)
    synced = train.sync_bn and world.device.type == "cuda"
    if (micro * world.size if synced else micro) < least:
        raise UserError(
            f"train.batch_size={train.batch_size} leaves {micro} image per process and micro-batch, but this model needs "
            f"{least} for its batch statistics; raise batch_size, lower accumulate, or take model.norm=group"
        )


def labelled(node: Mapping[str, Any], train_set: Any, val_set: Any) -> None:
    """Nothing is learned from, or measured on, a split whose labels are not published. Errors: UserError."""
    if not getattr(train_set, "labelled", True):
        raise UserError(
            f"dataset.train_split={node['train_split']}: has no labels to train on; choose another split"
        )
    if not getattr(val_set, "labelled", True):
        key = "split" if node["split"] else "val_split"
        raise UserError(
            f"dataset.{key}={node[key]}: has no labels to validate with; choose another split"
        )


def judged(predictor: Any, evaluator: Any) -> Any:
    """`evaluator`, if it can judge what `predictor` gives: proposals have no class. Errors: UserError."""
    if (
        getattr(predictor, "blind", False)
        and evaluator is not None
        and not getattr(evaluator, "blind", False)
    ):
        raise UserError(
            "dataset.metric: this model proposes objects without a class; take dataset=coco_proposal, or "
            "dataset.metric={_target_: segtrain.metrics.coco.ProposalEvaluator}"
        )
    return evaluator


def monitored(name: str, numbers: Sequence[str], terms: Sequence[str]) -> None:
    """`train.monitor` must be a scalar that is logged. Errors: UserError naming those there are."""
    losses = ["loss", *(f"loss/{term}" for term in terms)]
    known = [*numbers, *losses, *(f"train/{loss}" for loss in losses)]
    if name not in known:
        more = f" and {len(known) - 16} more" if len(known) > 16 else ""
        there = ", ".join(known[:16]) + more
        raise UserError(
            f"train.monitor={name}: not logged.{did_you_mean(name, known)} There are {there}"
        )


def finite_weights(network: nn.Module, done: int, world: World) -> None:
    """An update can ruin weights although its loss was finite; saved, they would be where every resume starts.

    Errors: InternalError on all ranks.
    """
    state = [value for value in network.state_dict().values() if value.is_floating_point()]
    ruined = torch.stack([~torch.isfinite(value).all() for value in state]).any().float()
    if world.sum(ruined).item():
        raise InternalError(
            f"step {done}: weights are not finite after this update; nothing was saved. {WAYS_OUT}"
        )
