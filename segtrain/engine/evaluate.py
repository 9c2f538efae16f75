"""One pass over a data set -> a dict of metrics.

It is shared by training, `segeval` and `segtrain.evaluate`.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable

import torch
from torch import nn

from segtrain.contracts import Dataset, Evaluator, Loss, Prediction, Predictor, Truth
from segtrain.data.loader import eval_batches
from segtrain.data.sampler import shard
from segtrain.engine.objective import mask_map_of
from segtrain.errors import DataError, InternalError, SegtrainError, Stopped
from segtrain.optim.precision import Precision
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

Sums = dict[str, tuple[float, float]]  # (sum, count) by name of the loss term


def evaluate(
    model: nn.Module,
    predictor: Predictor,
    dataset: Dataset,
    evaluator: Evaluator | None,
    *,
    world: World,
    precision: Precision,
    loss: Loss | None = None,
    workers: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    each: Callable[[str, Prediction], None] = lambda sample_id, prediction: None,
) -> dict[str, float]:
    """Return the evaluator's metrics, and `loss` and `loss/<term>` when a loss is given.

    Every image is read and predicted exactly once, at its own size, on the rank that `shard` gives
    it to; counts are merged over ranks before any ratio is taken. `each` sees every prediction of
    this rank, from which a submission is written; without an evaluator the result is {}.
    Errors: on every rank, where one fails: Stopped when `stop` turned true, else what failed there.
    """
    model.eval()
    if isinstance(loss, nn.Module):
        loss.eval()  # so that it does not ask for outputs that exist in training only
    indices = shard(len(dataset), world.rank, world.size)
    losses: dict[str, Sums] = {}
    stopped = False
    failure: Exception | None = None
    try:
        batches = eval_batches(dataset, indices, workers, mask_map=mask_map_of(loss))
        for done, batch in enumerate(batches):
            if stopped := stop():
                break
            sample_id = batch.ids[0]
            heartbeat.doing("measuring", sample_id)
            truth = _truth(batch)
            with torch.inference_mode():
                moved = batch.to(world.device)
                prediction, sums = _predict(model, predictor, moved, loss, precision)
            if sums:
                losses[sample_id] = sums
            each(sample_id, prediction)  # first: what a server does not take, in its own words
            if evaluator is not None:
                evaluator.update(sample_id, prediction, truth)
            advance(done + 1, len(indices))
    except Exception as error:
        if world.size == 1:
            raise
        failure = error  # the others wait below for this rank
    _leave_together(world, stopped, failure)
    if isinstance(loss, nn.Module):
        loss.train()
    if evaluator is None:
        return {}
    evaluator.merge(world.gather(evaluator.state()))
    metrics = dict(evaluator.compute())
    if loss is not None:
        metrics |= _merge_losses(world.gather(losses), loss)
    return metrics


def _leave_together(world: World, stopped: bool, failure: Exception | None) -> None:
    """Go on only where no rank was stopped and none has failed.

    Errors: Stopped; or the failure, on other ranks an error with its words and exit code.
    """
    own = None
    if failure is not None:
        known = isinstance(failure, SegtrainError)
        own = (str(failure) if known else repr(failure), isinstance(failure, DataError))
        if not known:
            traceback.print_exception(failure)
    told = world.gather((stopped, own))
    for words, of_data in (each for _, each in told if each is not None):
        if isinstance(failure, SegtrainError):
            raise failure
        raise (DataError if of_data else InternalError)(words)
    if any(was_stopped for was_stopped, _ in told):
        raise Stopped("stopped before every image was measured")


def _truth(batch: Batch) -> Truth:
    """Return what the metric compares with, of a batch of one image."""
    if batch.truths is not None and batch.truths[0] is not None:
        return batch.truths[0]
    if batch.masks is not None:
        return batch.masks[0]
    assert batch.instances is not None, "a split that is measured has labels"
    return batch.instances[0]


def _predict(
    model: nn.Module, predictor: Predictor, batch: Batch, loss: Loss | None, precision: Precision
) -> tuple[Prediction, Sums]:
    """Return the prediction of one image, and the sums of its loss where there is a loss.

    A plain predictor reads the forward pass that the loss needs anyway.
    """
    if loss is None:
        with precision:
            return predictor(batch.images[0], batch.ids[0]), {}
    with precision:
        output = model(batch)
    counts = loss.counts(batch)
    sums: Sums = {}
    for name, term in loss(output, batch).items():
        count = counts[name] if term.count is None else term.count
        sums[name] = (float(term.sum), float(count))
    if predictor.plain:
        height, width = batch.sizes[0].tolist()
        return predictor.labels(output, (height, width)), sums
    with precision:
        return predictor(batch.images[0], batch.ids[0]), sums


def _merge_losses(shards: list[dict[str, Sums]], loss: Loss) -> dict[str, float]:
    """Return the losses over all images of all ranks, {"loss", "loss/<term>"}.

    They are added in the order of ids with exact summation, so that sharding cannot change a bit.
    """
    merged = {sample_id: sums for share in shards for sample_id, sums in share.items()}
    ids = sorted(merged)
    if not ids:
        return {}  # of no image
    losses = {}
    total = 0.0
    for name in dict.fromkeys(name for sample_id in ids for name in merged[sample_id]):
        pairs = [merged[sample_id][name] for sample_id in ids if name in merged[sample_id]]
        count = math.fsum(count for _, count in pairs)
        value = math.fsum(part for part, _ in pairs) / count if count else 0.0
        losses[f"loss/{name}"] = value
        total += loss.weights[name] * value
    return {"loss": total, **losses}
