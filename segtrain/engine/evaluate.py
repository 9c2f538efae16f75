"""One pass over a data set -> a dict of numbers. Shared by training, `segeval` and the Python surface."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from segtrain.contracts import Evaluator, Loss, Predictor
from segtrain.data.loader import eval_batches
from segtrain.data.sampler import shard
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch


class Stopped(Exception):
    """Some rank was told to stop before the pass was over."""


def evaluate(
    model: nn.Module,
    predictor: Predictor,
    dataset: Sequence[Any],
    evaluator: Evaluator | None,
    *,
    world: World,
    precision: Precision,
    criterion: Loss | None = None,
    workers: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    each: Callable[[str, Any], None] = lambda sample_id, prediction: None,
) -> dict[str, float]:
    """The evaluator's numbers, and `loss` (and `loss/<term>`) when a criterion is given; {} without an evaluator.

    Every image is read and predicted exactly once, on the rank that `shard` gives it to, at its own size; counts are merged
    over ranks before any ratio is taken. `each` sees every prediction of this rank: a submission writes them down.
    Errors: Stopped on every rank when `stop` turned true on one.
    """
    model.eval()
    if isinstance(criterion, nn.Module):
        criterion.eval()  # outputs that exist in training only are not asked for
    indices = shard(len(dataset), world.rank, world.size)
    losses: dict[str, dict[str, tuple[float, float]]] = {}
    stopped = False
    for done, batch in enumerate(eval_batches(dataset, indices, workers)):
        if stopped := stop():
            break
        sample_id, target = batch.ids[0], _compared_with(batch)
        batch = batch.to(world.device)
        with torch.inference_mode():
            prediction, terms = _one_image(model, predictor, batch, criterion, precision)
        if terms:
            losses[sample_id] = terms
        each(sample_id, prediction)  # first: what a server does not take is said in its own words
        if evaluator is not None:
            evaluator.update(sample_id, prediction, target)
        advance(done + 1, len(indices))
    if any(world.gather(stopped)):
        raise Stopped
    if isinstance(criterion, nn.Module):
        criterion.train()
    if evaluator is None:
        return {}
    evaluator.merge(world.gather(evaluator.state()))
    numbers = dict(evaluator.compute())
    if criterion is not None:
        numbers |= _merge_losses(world.gather(losses), criterion)
    return numbers


def _compared_with(batch: Batch) -> Any:
    """What the metric reads of a batch of one image."""
    truth = batch.truths[0] if batch.truths else None
    if truth is not None:
        return truth
    if batch.masks is not None:
        return batch.masks[0]
    assert batch.instances is not None
    return batch.instances[0]


def _one_image(
    model: nn.Module,
    predictor: Predictor,
    batch: Batch,
    criterion: Loss | None,
    precision: Precision,
) -> tuple[Any, dict[str, tuple[float, float]]]:
    """The prediction, and (sum, count) per loss term. A plain predictor reads the forward pass that the loss needs anyway."""
    terms: dict[str, tuple[float, float]] = {}
    if criterion is None:
        with precision:
            return predictor(batch.images[0], batch.ids[0]), terms
    with precision:
        output = model(batch)
    counts = criterion.counts(batch)
    for name, term in criterion(output, batch).items():
        count = counts[name] if term.count is None else term.count
        terms[name] = (float(term.sum), float(count))
    if predictor.plain:
        height, width = batch.sizes[0].tolist()
        return predictor.labels(output, (height, width)), terms
    with precision:
        return predictor(batch.images[0], batch.ids[0]), terms


def _merge_losses(
    shards: list[dict[str, dict[str, tuple[float, float]]]], criterion: Loss
) -> dict[str, float]:
    """Losses over all images. Added in the order of ids with exact summation, so that sharding cannot change a bit."""
    merged = {sample_id: terms for part in shards for sample_id, terms in part.items()}
    names = dict.fromkeys(name for sample_id in sorted(merged) for name in merged[sample_id])
    numbers, total = {}, 0.0
    for name in names:
        pairs = [
            merged[sample_id][name] for sample_id in sorted(merged) if name in merged[sample_id]
        ]
        count = math.fsum(count for _, count in pairs)
        value = math.fsum(part for part, _ in pairs) / count if count else 0.0
        numbers[f"loss/{name}"] = value
        total += criterion.weights[name] * value
    return {"loss": total, **numbers}
