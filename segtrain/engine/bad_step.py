"""A step whose numbers are not finite, kept in `RUN/bad_step_N` so that it can be computed again.

The folder has the form of a checkpoint: `model`, the weights and buffers that the step began with,
and `batch`, the micro-batches of all ranks as plain tensors. Whoever opens one may have it from a
stranger: nothing in it is run, no link is followed, and every tensor is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.checkpoints import writing
from segtrain.checkpoints.manifest import Checkpoint, inspect
from segtrain.checkpoints.safe_load import Damaged
from segtrain.config.schema import TrainConf
from segtrain.contracts import Loss
from segtrain.engine.update import losses
from segtrain.errors import UserError
from segtrain.optim.precision import Precision
from segtrain.rng import seed_for
from segtrain.runtime.distributed import World
from segtrain.structures.instances import Instances
from segtrain.structures.samples import IGNORE, Batch

PREFIX = "bad_step_"


def write(
    folder: Path,
    step: int,
    network: nn.Module,
    shares: Sequence[list[dict[str, Any]]],
    meta: Mapping[str, Any],
) -> Path:
    """Write `folder/bad_step_<step>` whole or not at all; those of earlier steps are removed.

    `shares` are the micro-batches of each rank, as `plain` gives them. Errors: DiskError.
    """
    payload = {"model": network.state_dict(), "batch": list(shares)}
    path = writing.save_as(folder, f"{PREFIX}{step}", step, payload, meta)
    for old in folder.glob(f"{PREFIX}*"):
        # What is not sealed by us is somebody's own.
        with suppress(OSError, Damaged, UserError):
            if old != path and inspect(old):
                writing.remove(old)
    return path


def plain(batch: Batch) -> dict[str, Any]:
    """Return a batch as tensors on the host and plain types; what only metrics read is left out."""
    here = batch.to(torch.device("cpu"))
    return {
        "ids": list(here.ids),
        "images": here.images,
        "sizes": here.sizes,
        "inside": here.inside,
        "masks": here.masks,
        "mask_maps": here.mask_maps,
        "instances": None if here.instances is None else [vars(each) for each in here.instances],
    }


def batches(checkpoint: Checkpoint, num_classes: int) -> list[list[Batch]]:
    """Return the micro-batches of each rank. Errors: UserError for what no run has written."""
    if "batch.pt" not in checkpoint.files:
        raise UserError(
            f"{checkpoint.path}: holds no batch; name the folder {PREFIX}N that a run left"
        )
    told = checkpoint.read("batch")
    try:
        shares = [[_batch(each, num_classes) for each in share] for share in told]
        if not shares or not all(shares):
            raise ValueError("is empty")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{checkpoint.path}: its batch is none that segtrain wrote ({str(error)[:80]!r})"
        ) from None
    return shares


def _batch(told: dict[str, Any], num_classes: int) -> Batch:
    """Check and return a batch. Errors: those of Python for what is none."""
    ids = [str(name) for name in told["ids"]]
    images = _tensor(told["images"], torch.uint8, (len(ids), 3, None, None), "images")
    size = images.shape[2:]
    maps = (len(ids), *size)
    masks = told["masks"]
    instances = told["instances"]
    batch = Batch(
        images=images,
        sizes=_tensor(told["sizes"], torch.int64, (len(ids), 2), "sizes"),
        ids=ids,
        masks=None if masks is None else _tensor(masks, torch.uint8, maps, "masks"),
        instances=None if instances is None else [_instances(each, size) for each in instances],
        mask_maps=_optional(told["mask_maps"], torch.float32, maps, "mask_maps"),
        inside=_optional(told["inside"], torch.int64, (len(ids), 4), "inside"),
    )
    if bool((batch.sizes < 1).any()) or bool((batch.sizes > torch.tensor(size)).any()):
        raise ValueError("sizes are not those of the images")
    labels = [] if batch.masks is None else [batch.masks[batch.masks != IGNORE]]
    labels += [each.labels for each in batch.instances or ()]
    if any(bool(((each < 0) | (each >= num_classes)).any()) for each in labels):
        raise ValueError("labels are of more classes than the model has")
    labelled = len(ids) if batch.instances is None else len(batch.instances)
    if (batch.masks is None) == (batch.instances is None) or labelled != len(ids):
        raise ValueError("neither masks nor instances of every image")
    return batch


def _instances(told: dict[str, Any], size: Sequence[int]) -> Instances:
    labels = _tensor(told["labels"], torch.int64, (None,), "labels")
    count = len(labels)
    return Instances(
        boxes=_tensor(told["boxes"], torch.float32, (count, 4), "boxes"),
        labels=labels,
        masks=_tensor(told["masks"], torch.bool, (count, *size), "masks of objects"),
        crowd=_optional(told["crowd"], torch.bool, (count,), "crowd"),
        dropped=int(told["dropped"]),
    )


def _optional(
    value: Any, dtype: torch.dtype, shape: Sequence[int | None], name: str
) -> Tensor | None:
    return None if value is None else _tensor(value, dtype, shape, name)


def _tensor(value: Any, dtype: torch.dtype, shape: Sequence[int | None], name: str) -> Tensor:
    fits = type(value) is Tensor and value.dtype == dtype and value.ndim == len(shape)
    if not fits or any(
        wanted not in (None, found) for wanted, found in zip(shape, value.shape, strict=True)
    ):
        raise ValueError(f"{name} has another type or shape")
    return value


# ---------------------------------------------------------------------- computed again


@dataclass(frozen=True)
class Look:
    """What a forward and a backward pass over one micro-batch gave."""

    ids: list[str]
    loss: float
    norm: float  # 2-norm of the gradient over all parameters
    module: str | None  # whose output was the first one that is not finite
    parameters: list[str]  # whose gradients are not finite, or cannot be squared

    @property
    def finite(self) -> bool:
        """Whether an update could be made from it."""
        return self.module is None and not self.parameters and abs(self.loss) < float("inf")


def look(
    network: nn.Module,
    criterion: Loss,
    train: TrainConf,
    step: int,
    rank: int,
    micro_batches: Sequence[Batch],
) -> Iterator[Look]:
    """Compute micro-batches of a rank's update `step` again, each alone, where the network is.

    Dropout is that of `train.seed`, step and rank. The network is in training mode; its buffers
    change. Errors: UserError for a precision that its device does not have.
    """
    named = {name: each for name, each in network.named_parameters() if each.requires_grad}
    device = next(network.parameters()).device
    precision = Precision(train.precision, device.type)
    seed = seed_for(train.seed, "dropout", step - 1, rank)
    spoiled: list[str] = []

    def hook(name: str, module: nn.Module) -> Any:
        def see(layer: nn.Module, inputs: Any, output: Any) -> None:
            if not all(bool(torch.isfinite(each).all()) for each in _tensors(output)):
                spoiled.append(f"{name or 'the whole network'} ({type(module).__name__})")

        return module.register_forward_hook(see)

    hooks = [hook(name, module) for name, module in network.named_modules()]
    here = [batch.to(device) for batch in micro_batches]
    try:
        computed = losses(criterion, network, precision, here, seed, World(device=device))
        for batch, (loss, _) in zip(here, computed, strict=True):
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            held = {n: each for n, each in zip(named, gradients, strict=True) if each is not None}
            norms = {n: each.norm() for n, each in held.items()}
            yield Look(
                batch.ids,
                float(loss.detach()),
                float(torch.stack(list(norms.values())).norm()),
                spoiled[0] if spoiled else None,
                [n for n, norm in norms.items() if not torch.isfinite(norm.square())],
            )
            spoiled.clear()
    finally:
        for each in hooks:
            each.remove()


def alone(batch: Batch, index: int, times: int) -> Batch:
    """Return one image of a batch, `times` times where batch statistics need several."""
    places = torch.tensor([index] * times)

    def taken(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[places]

    instances = batch.instances
    return replace(
        batch,
        images=batch.images[places],
        sizes=batch.sizes[places],
        ids=[batch.ids[index]] * times,
        masks=taken(batch.masks),
        instances=None if instances is None else [instances[index]] * times,
        mask_maps=taken(batch.mask_maps),
        inside=taken(batch.inside),
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a module returned."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
