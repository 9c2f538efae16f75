"""Training: `fit` builds the parts of a run, then loops over its updates. Read this first.

`fit` is the whole training loop; there are no callbacks. Read it from top to bottom. Nothing random
is stored: order, augmentation, dropout and learning rate are functions of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from segtrain.checkpoints import reading
from segtrain.config import parts as config_parts
from segtrain.config import trust
from segtrain.config.files import flatten
from segtrain.config.recipe_line import recipe_line
from segtrain.config.schema import RunConf, dataset_keys
from segtrain.data.images import image_size
from segtrain.data.sampler import shard
from segtrain.data.splits import shared
from segtrain.data.verify import merged, notes, nothing_in, only_class, verify_labels
from segtrain.engine import batch_norm, batch_size, inputs, memory, where_time_goes
from segtrain.engine.bad_samples import BadSamples
from segtrain.engine.field_of_view import blind_branches, crop_of
from segtrain.engine.not_finite import Numbers
from segtrain.engine.parts import Parts, build_parts, spare_samples, train_batches
from segtrain.engine.same_data import check_data
from segtrain.engine.state import TrainState, restore, save, score
from segtrain.engine.update import Report, update
from segtrain.engine.validate import no_patience, patience_exhausted, validate_and_save
from segtrain.engine.watchdog import Watchdog
from segtrain.errors import DataError, Interrupted, SegtrainError, complain
from segtrain.logs.progress import Progress
from segtrain.logs.run_log import RunLog
from segtrain.logs.summary import environment, final_table, write_json
from segtrain.optim.optimizers import describe
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World, idle_gpus
from segtrain.runtime.run_folder import NewRun, claimed, has_checkpoints
from segtrain.runtime.signals import Signals
from segtrain.structures.samples import Batch

# A config as text, environment variables by their names.
StoredConfig = Mapping[str, Any] | None


def fit(
    run: RunConf,
    folder: Path,
    world: World,
    new: NewRun | None = None,
    config: StoredConfig = None,
    guest: bool = False,
) -> dict[str, Any]:
    """Train `run` in `folder` on this rank, from the newest whole checkpoint there to the end.

    `new` is stored there once its parts are built; `config` is what checkpoints tell of the run.
    A `guest` never ends the process, which is somebody else's (`from_python`).
    Returns the summary; {} on ranks above 0, or where another process completed it meanwhile.
    Errors: those of the parts, KeyboardInterrupt before the loop, Interrupted once it has begun.
    """
    begin_with = batch_size.to_build(run, world)
    parts = build_parts(begin_with, world, resumed=has_checkpoints(folder))
    run, new, config, found = batch_size.settled(run, new, config, parts, world)
    due = Due.of(run, world)
    pending: list[Report] = []  # of updates that the device may still be computing
    with ExitStack() as stack:
        if not stack.enter_context(claimed(folder, new, world)):
            return {}  # complete: another process trained it after we looked
        state = restore(run, folder, parts, world, config)
        log = stack.enter_context(closing(open_log(run, folder, parts, state, world)))
        announce(run, folder, parts, state, log, world)
        if found:
            log.text(found)
        spare = spare_samples(run.train, parts.train_set)
        bad = BadSamples.of(folder, parts.train_set, spare, log, world)
        verify(run, parts, state.step == 0, bad, log, world)
        if check_data(run, folder, parts, state, log, world):  # they changed, and that is allowed
            verify(run, parts, True, bad, log, world)
        unfold(run, parts, state, log, world)
        if state.settings is not None:  # on rank 0
            log.open_records(flatten(state.settings.config))
        numbers = Numbers(run, folder, parts, state, log, world)
        signals = stack.enter_context(Signals(guest))  # until here they ended the run at once
        watchdog = stack.enter_context(Watchdog(run.train, folder, world, guest))
        log.begin()  # what was built and verified until here is no part of the shares of time
        if state.step and due.to_validate(state.step) and not state.validated:  # interrupted there
            validate_and_save(run, folder, parts, state, log, world, signals)
        begun = state.step
        batches = train_batches(run, parts, world, state.step, run.train.steps)
        for micro_batches in log.waiting(bad.together(batches, state.step)):
            if isinstance(micro_batches, SegtrainError):  # a sample of some rank cannot be used
                if state.step > begun:
                    numbers.settle(pending)
                    save(run, folder, parts, state, log, world)
                raise told_to_go_on(micro_batches, folder, state, bad)
            if patience_exhausted(run.train, state, due.validate_every):  # a resumed run's, too
                log.text(no_patience(run.train, state))
                break
            heartbeat.doing(*training_on(state.step, micro_batches))
            pieces = state.pieces
            pending.append(update(run, parts, state, micro_batches, world, signals))
            state.step += 1
            watchdog.step()
            if state.pieces != pieces:
                log.text(memory.told(run.train, state, world))
            if not due.to_read(state.step):  # on a GPU, reading waits for the device
                log.advance(state.step, None)
                continue
            stop = numbers.settle(pending)
            log.advance(state.step, state.losses["loss"])
            if due.to_log(state.step):
                log.train(state.step, {**state.losses, "lr": state.lr}, beside(state))
            if stop:  # some rank has received a signal
                save(run, folder, parts, state, log, world)
                raise interrupted(folder, state, signals)
            if due.to_validate(state.step):
                validate_and_save(run, folder, parts, state, log, world, signals)
            elif due.to_save(state.step):
                save(run, folder, parts, state, log, world)
        return finish(run, folder, state, log, world)


def told_to_go_on(
    error: SegtrainError, folder: Path, state: TrainState, bad: BadSamples
) -> SegtrainError:
    """Return the error of a sample with the way to go on from what is saved."""
    if state.step:
        skip = isinstance(error, DataError) and not bad.spare
        way = trust.command(f"resume={folder}", *(["train.bad_samples=skip"] if skip else []))
        mended = ""
        if skip:  # what is damaged or mended since the run began is another file than it knows
            mended = (
                ", or without the last word once it is mended; where its file changed since the "
                "run began, with dataset.allow_change=true too"
            )
        error.args = (f"{error}; step {state.step} is saved, go on with: {way}{mended}",)
    return error


def interrupted(folder: Path, state: TrainState, signals: Signals) -> Interrupted:
    """Return the error that ends a run which was told to stop, on this rank or another."""
    return Interrupted(
        f"{signals.received or 'a signal'} at step {state.step}: saved; "
        f"go on with: {trust.command(f'resume={folder}')}"
    )


def training_on(step: int, micro_batches: list[Batch]) -> tuple[str, str]:
    """Return what an update is, in words, and its images."""
    ids = [sample_id for batch in micro_batches for sample_id in batch.ids]
    return f"making step {step + 1}", ", ".join(ids)


@dataclass(frozen=True)
class Due:
    """What is to be done after which updates; `step` is the number of updates made."""

    steps: int
    log_every: int
    validate_every: int
    save_every: int | None
    read_every: int

    @classmethod
    def of(cls, run: RunConf, world: World) -> Due:
        """Read the intervals from a run.

        Without `train.eval_every` it is validated about five times.
        """
        return cls(
            steps=run.train.steps,
            log_every=run.log.every,
            # Five, chosen by hand: enough to see a curve, and most of the time is training.
            validate_every=run.train.eval_every or max(1, math.ceil(run.train.steps / 5)),
            save_every=run.train.save_every,
            # Reading waits for the GPU, which then has nothing to do until the next step is
            # launched. With every fourth step, a number chosen by hand, it waits seldom, and bar
            # and signals are prompt.
            read_every=4 if world.device.type == "cuda" else 1,
        )

    def to_log(self, step: int) -> bool:
        """Tell whether to write a training line: regularly, and after the first update."""
        return step % self.log_every == 0 or step == 1

    def to_validate(self, step: int) -> bool:
        """Tell whether to validate and save: regularly, and at the end."""
        return step % self.validate_every == 0 or step == self.steps

    def to_save(self, step: int) -> bool:
        """Tell whether to save where no validation is due, which saves too."""
        return self.save_every is not None and step % self.save_every == 0

    def to_read(self, step: int) -> bool:
        """Tell whether to wait for the device and read the losses.

        It is due where anything else is, else every `read_every` updates.
        """
        due = self.to_log(step) or self.to_validate(step) or self.to_save(step)
        return due or step % self.read_every == 0


def open_log(run: RunConf, folder: Path, parts: Parts, state: TrainState, world: World) -> RunLog:
    """Open console, metrics, writers and bar; they are silent on ranks above 0."""
    log = RunLog(
        folder,
        run.train.steps,
        state.step,
        run.train.global_batch,
        progress=run.log.progress,
        enabled=world.main,
        ways_out=where_time_goes.ways_out(run, parts),
        idle=where_time_goes.DeviceIdle() if world.device.type == "cuda" else None,
    )
    for name in run.writer if world.main else ():
        with log.aside(f"writer {name}"):
            log.add(config_parts.writer(run, name, folder, state.step))
    return log


def beside(state: TrainState) -> dict[str, float]:
    """Return what else is told of the newest update that was read, for timing.jsonl."""
    scale = state.precision.scale()
    scaled = {} if scale is None else {"loss_scale": scale}
    return {"grad_norm": state.norm, **scaled, **state.rates}


def announce(
    run: RunConf, folder: Path, parts: Parts, state: TrainState, log: RunLog, world: World
) -> None:
    """Say what is about to be trained, on what and with what."""
    train = run.train
    parameters = sum(p.numel() for p in state.network.parameters() if p.requires_grad)
    pieces = train.micro_batches * state.pieces
    share = train.global_batch // world.size // pieces
    recipe = recipe_line(run) if world.main else None
    idle = idle_gpus(world)
    lines = [
        *([recipe] if recipe else []),
        f"run {folder}",
        f"data   {len(parts.train_set)} images to train on, {len(parts.val_set)} to validate on, "
        f"{len(parts.class_names)} classes",
        *views(run),
        f"model  {type(state.network).__name__}, {parameters:,} parameters",
        f"batch  {train.batch_size} images = {world.size} processes x {pieces} "
        f"micro-batches x {share} images",
        f"device {world.device}, {train.precision}, {torch.get_num_threads()} threads, "
        f"{parts.workers} loader workers, steps {state.step} to {train.steps}",
        *([f"warn   {idle}"] if idle else []),
        *([f"extend the schedule began anew at step {train.begin}"] if train.begin else []),
        describe(state.optimizer),
        *(blind(run, parts, state) if world.main else ()),
        *(inputs.apart(run, state.network) if not state.step and not train.init else ()),
        *([f"trust  {', '.join(trust.folders())}"] if trust.folders() else []),
        *(state.settings.changes if state.settings else ()),
    ]
    log.text("\n".join(lines))
    keys = dataset_keys(run.dataset)
    if keys.measured_split == keys.train_split:
        log.text(
            "note   validation uses the training split: its scores say nothing about new images"
        )


def blind(run: RunConf, parts: Parts, state: TrainState) -> list[str]:
    """Warn of dilations that the crops are too small for, where whole images are measured."""
    if not len(parts.val_set) or "window" in run.inference:
        return []
    files = parts.val_set.files(0)
    try:
        size = parts.val_set[0].image.shape[:2] if files is None else image_size(files.image)
    except SegtrainError:  # what is wrong with it is told when it is verified, or read
        return []
    said = blind_branches(run, state.network, size)
    return [f"warn   {said}"] if said else []


def views(run: RunConf) -> list[str]:
    """Say in a line what is seen of an image in training; nothing of another one's augmentation."""
    augment = run.augment
    if crop := crop_of(augment):
        height, width = crop
        return [f"views  crops of {height} x {width} pixels (height x width)"]
    if augment["_target_"] != "segtrain.data.shorter_edge.ShorterEdge":
        return []
    edges = " or ".join(map(str, augment["shorter"]))
    return [
        f"views  whole images, shorter edge {edges}, longer edge at most {augment['longest']} "
        "pixels (augment.shorter, augment.longest; dataset.crop does not count)"
    ]


def verify(
    run: RunConf, parts: Parts, unseen: bool, bad: BadSamples, log: RunLog, world: World
) -> None:
    """Open every image and label of `unseen` data once, shared among the ranks.

    Training samples that are `bad` are left out where the run may. Says what is unusual about each
    split. Errors: DataError on all ranks, also where there is nothing to learn from.
    """
    wanted = run.train.verify and unseen
    keys = dataset_keys(run.dataset)
    splits = ((keys.train_split, parts.train_set), (keys.measured_split, parts.val_set))
    for split, dataset in splits if wanted else ():
        # A generated set has nothing on disk to check.
        if len(dataset) and dataset.files(0) is None:
            continue
        mine = shard(len(dataset), world.rank, world.size)
        spare = bad.spare if dataset is parts.train_set else 0
        scored = dataset is parts.val_set
        with Progress(len(mine), f"verifying {split}", world.main and run.log.progress) as bar:
            found = verify_labels(
                dataset, mine, progress=lambda done, _: bar.to(done), scored=scored, spare=spare
            )
        report = merged(world.gather(found))
        if spare:
            bad.verified(report)
        else:
            complain(report.problems)
        if fault := report.agreement.fault():
            raise DataError(f"split {split}: {fault}")
        nothing = nothing_in(dataset, report)
        constant = only_class(dataset, report)
        if nothing and dataset is parts.train_set:
            raise DataError(f"dataset.train_split={split}: {nothing}, so nothing is learned")
        if constant and dataset is parts.train_set:
            raise DataError(f"dataset.train_split={split}: {constant}")
        if constant:
            log.text(f"note   split {split}: {constant}")
        if nothing:
            log.text(f"warn   split {split} {nothing}: nothing is measured")
        elif lines := notes(dataset, report):
            log.text("\n".join(f"note   split {split}: {line}" for line in lines))
    other = wanted and keys.measured_split != keys.train_split
    if other and (both := shared(parts.train_set, parts.val_set)):
        log.text(f"note   {both}")
    # All ranks begin to answer signals together: one that waits for a rank that was ended at once
    # would save nothing.
    world.barrier()


def unfold(run: RunConf, parts: Parts, state: TrainState, log: RunLog, world: World) -> None:
    """Give a new run's folded batch norms statistics (`train.unfold_batches`), or warn of them."""
    if state.step:
        return
    found = len(batch_norm.folded(state.network))
    count = run.train.unfold_batches
    if count is None:
        if found:
            log.text(
                f"warn   {found} batch norms were folded into convolutions and hold no statistics: "
                "training makes another network of them; set train.unfold_batches=100, or "
                "model.norm=frozen"
            )
        return
    batches = chain.from_iterable(train_batches(run, parts, world, 0, count))
    changed = batch_norm.unfold(state.network, islice(batches, count), world) if found else 0
    if state.ema is not None:
        state.ema.module.load_state_dict(state.network.state_dict())
    log.text(
        f"norms  {changed} of {found} folded batch norms have statistics of {count} batches now"
    )


@heartbeat.patiently()
def finish(
    run: RunConf, folder: Path, state: TrainState, log: RunLog, world: World
) -> dict[str, Any]:
    """Write summary.json with the final numbers, which marks the run as complete, and return it."""
    world.barrier()
    if not world.main:
        return {}
    newest = reading.latest(folder / "checkpoints")
    # The last step, or the one where patience ended, was validated and saved.
    assert newest is not None
    summary = {
        "status": "complete",
        "step": newest.step,
        "metric": run.train.monitor,
        "best": state.best,
        "final": state.metrics,
        "parameters": sum(p.numel() for p in state.network.parameters()),
        **log.totals(),
        "seed": run.train.seed,
        **environment(log.aside),
    }
    write_json(folder / "summary.json", summary)
    log.complete(state.metrics)
    lines = [
        final_table(state.metrics),
        *remarks(run, state),
        *kept_best(run, folder),
        *log.account(),
    ]
    log.text("\n".join([*lines, f"written to {folder}"]))
    return summary


def remarks(run: RunConf, state: TrainState) -> list[str]:
    """Say of the final numbers what they do not show by themselves."""
    lines = []
    if state.best is not None and state.best["step"] != state.step:
        step = int(state.best["step"])
        lines.append(f"best   {run.train.monitor} {state.best['value']:.4f} at step {step}")
    found = {
        name.removeprefix("IoU/"): value
        for name, value in state.metrics.items()
        if name.startswith("IoU/") and not math.isnan(value)
    }
    only = [name for name, value in found.items() if value > 0]
    if len(found) > 1 and len(only) == 1:
        lines.append(
            f"note   of {len(found)} classes only `{only[0]}` is found: a network that has learned "
            "nothing yet; train longer, or start from weights"
        )
    return lines


def kept_best(run: RunConf, folder: Path) -> list[str]:
    """Name the best checkpoints where several are kept (`train.keep_best`)."""
    count = run.train.keep_best
    if count == 1:
        return []
    best = reading.ranked(reading.scan(folder / "checkpoints"))[:count]
    told = [f"{score(run.train, b.meta['score']):.4f} at step {b.step}" for b in best]
    return [f"kept   {run.train.monitor} {', '.join(told) or 'of no checkpoint'}"]
