"""`segtrain replay=RUN/bad_step_N`: compute a step again whose numbers were not finite.

A run that ended on such a number left the batch of all processes and the weights it began with.
They are computed again in one process: each micro-batch as it was, then each image alone. The data
set is not needed. The settings are those inside the folder, which may come from a stranger; like
those of any checkpoint they name parts of segtrain and of trusted packages only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.config import parts
from segtrain.config.compose import with_overrides
from segtrain.errors import InternalError, UserError, printable

if TYPE_CHECKING:
    from segtrain.engine.bad_step import Look

# What may be said besides: where it is computed, and how exactly.
MAY_SAY = ("train.device", "train.precision", "train.threads")


def replay(folder: Path, words: Sequence[str]) -> None:
    """Print what the step gives now: losses, gradients, and where numbers cease to be finite.

    Errors: UserError for what is no such folder; InternalError (70) where all numbers are finite.
    """
    for word in words:
        if word.partition("=")[0] not in MAY_SAY:
            raise UserError(f"{word}: replay= takes {', '.join(MAY_SAY)} only")

    import torch  # only now: help and slips come at once

    from segtrain import api
    from segtrain.checkpoints import match, reading
    from segtrain.engine import bad_step, inputs
    from segtrain.engine.parts import check_model
    from segtrain.runtime.distributed import pick_device, use_threads
    from segtrain.structures.labels import LabelMap
    from segtrain.weights.backbone_file import unread

    source = reading.find(folder)
    run = with_overrides(api.stored_run(source), words)
    labels = LabelMap.from_record(source.meta.get("labels"), str(source.path))
    shares = bad_step.batches(source, labels.num_classes)
    device = pick_device(run.train.device)
    use_threads(run.train.threads, 1)
    layout = torch.channels_last if run.train.channels_last else torch.contiguous_format
    with unread():
        network = parts.model(run.model, labels.num_classes, device, layout)
    inputs.as_trained(network, source)
    saved = match.modern_state(
        match.tensors(source.read("model"), source.path), source.meta.get("config")
    )
    match.load_exactly(network, saved, source.path)
    network.train()
    criterion = parts.loss(run.loss, device, labels.names)
    times = check_model(network).min_train_batch

    said = printable(str(source.meta.get("said"))).partition(";")[0]
    print(f"replay {source.path} on {device}, {run.train.precision}")
    print(f"then   {said}")
    found: list[Look] = []
    print(f"{'process':<9}{'loss':>12}{'gradient':>12}  images")
    for rank, share in enumerate(shares):
        for look in bad_step.look(network, criterion, run.train, source.step, rank, share):
            print(f"{rank:<9}{_numbers(look)}")
            found.append(look)
    bad = [look for look in found if not look.finite]
    if not bad:
        raise InternalError(
            f"{source.path}: not reproduced, every loss and gradient is finite here; the run may "
            "have met a fault of its machine, or another device, precision or version computes "
            "otherwise"
        )
    print("each image alone, where numbers were not finite")
    for rank, share in enumerate(shares):
        for batch in share:
            if not any(look.ids == batch.ids for look in bad):
                continue
            for index in range(len(batch.ids)):
                one = bad_step.alone(batch, index, times)
                for look in bad_step.look(network, criterion, run.train, source.step, rank, [one]):
                    print(f"{rank:<9}{_numbers(replace(look, ids=look.ids[:1]))}")
    total = sum(parameter.requires_grad for parameter in network.parameters())
    spoiled = bad[0].parameters
    nearest = f", nearest to the loss {spoiled[-1]}" if spoiled else ""
    print(f"first output that is not finite: {bad[0].module or 'none'}")
    print(f"gradients that are not finite: {len(spoiled)} of {total} parameters{nearest}")
    print("reproduced")


def _numbers(look: Look) -> str:
    images = printable(", ".join(look.ids))
    return f"{look.loss:>12.5g}{look.norm:>12.5g}  {images}"
