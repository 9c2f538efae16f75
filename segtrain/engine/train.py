"""Training: `fit` wires the parts of a run, then the loop. Read this first.

Whatever the task, a step is: count the targets of the whole global batch, forward, loss terms in fp32, backward, one small
sum over all ranks (losses, finite, stop), update. Nothing random is stored: order, augmentation, dropout and rate are
functions of the step.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segtrain.checkpoints import match as match_module
from segtrain.checkpoints import reading, writing
from segtrain.config import instantiate
from segtrain.config import parts as parts_module
from segtrain.config.files import load_yaml
from segtrain.config.schema import RunConf, check_batch, measured_split
from segtrain.contracts import Criterion
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler, aspect_groups, shard
from segtrain.data.verify import verify_labels
from segtrain.engine import batch_norm, checks
from segtrain.engine.evaluate import Stopped, evaluate
from segtrain.engine.objective import global_counts, objective
from segtrain.errors import InternalError, Interrupted, UserError, complain
from segtrain.logs.metrics_file import rewind
from segtrain.logs.run_log import RunLog
from segtrain.logs.summary import environment, final_table, forget_peak_memory, write_json
from segtrain.optim.optimizers import describe, set_rate
from segtrain.optim.precision import Precision
from segtrain.rng import seed_for
from segtrain.runtime.distributed import World, no_reduce, use_threads
from segtrain.runtime.signals import Signals
from segtrain.structures.samples import Batch
from segtrain.visualization import panels, picture_files


@dataclass(frozen=True)
class Report:
    """What a step tells the host. `vector` = (bad ranks, stop requests, total loss, terms...), summed over ranks."""

    step: int
    vector: Tensor
    names: list[str]
    ids: list[str]  # of this rank's images
    bad: Tensor  # 1.0 when this rank's own loss is not finite


class Trainer:
    """One run on this rank: parts, loop, checkpoints."""

    def __init__(self, run: RunConf, folder: Path, world: World) -> None:
        self.run, self.folder, self.world = run, folder, world
        train = run.train
        check_batch(train, world.size)
        use_threads(train.threads, world.size)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.train_set = parts_module.dataset(run.dataset, run.dataset["train_split"])
        self.val_set = parts_module.dataset(run.dataset, measured_split(run.dataset))
        checks.labelled(run.dataset, self.train_set, self.val_set)
        self.names = list(self.train_set.labels.names)
        self.groups = aspect_groups(self.train_set) if train.aspect_groups else None

        torch.manual_seed(seed_for(train.seed, "init"))
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.network = parts_module.model(run.model, len(self.names)).to(
            world.device, memory_format=layout
        )
        if train.sync_bn and world.size > 1 and world.device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        checks.batch_share(train, self.network, world)
        average = get_ema_multi_avg_fn(train.ema or 0)
        self.ema = (
            AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
            if train.ema
            else None
        )
        self.model = world.wrap(torch.compile(self.network) if train.compile else self.network)
        self.criterion: Criterion = parts_module.criterion(run.loss).to(world.device)
        self.optimizer = instantiate.build(run.optimizer, "optimizer", model=self.network)
        self.schedule = instantiate.build(run.schedule, "schedule", steps=train.steps)
        self.precision = Precision(train.precision, world.device.type)
        self.augment = parts_module.augment(run.augment)
        self.workers = (
            train.workers if train.workers is not None else 4 if world.device.type == "cuda" else 0
        )
        self.eval_every = train.eval_every or max(1, math.ceil(train.steps / 5))
        self.best: dict[str, float] | None = None  # {"step", "value"} of the monitored scalar
        self.numbers: dict[str, float] = {}
        self.reports: list[Report] = []
        self.last_train: dict[str, float] = {}
        self.signals = Signals()
        judge = checks.judged(
            parts_module.predictor(run, self.network),
            parts_module.evaluator(run.dataset, self.names),
        )
        checks.monitored(train.monitor, judge.names(), list(self.criterion.weights))

    # ------------------------------------------------------------------ the step

    def step(self, step: int, micros: list[Batch]) -> None:
        """One optimiser update on this rank's share of a global batch."""
        torch.manual_seed(seed_for(self.run.train.seed, "dropout", step, self.world.rank))
        set_rate(self.optimizer, self.schedule(step))
        self.optimizer.zero_grad(set_to_none=True)
        counts = global_counts(self.criterion, micros, self.world)
        total, parts = torch.zeros((), device=self.world.device), {}
        for index, batch in enumerate(micros):
            with no_reduce(self.model, index + 1 < len(micros)):
                with self.precision:
                    output = self.model(batch)
                terms = self.criterion(output, batch)  # fp32, outside autocast
                loss, added = objective(
                    terms, counts, self.criterion.weights, self.world, len(micros)
                )
                self.precision.backward(
                    loss * self.world.size
                )  # DDP averages over ranks; we want the sum
            total += loss.detach()
            parts = {name: parts.get(name, 0) + part.detach() for name, part in added.items()}
        self.precision.unscale(self.optimizer)
        if self.run.train.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.run.train.clip)
        report = self.agree(step, total, parts, micros)
        self.precision.step(
            self.optimizer, report.vector[0]
        )  # nothing moves when any rank's loss is not finite
        self.reports.append(report)
        if self.ema is not None:
            self.ema.update_parameters(self.network)

    def agree(
        self, step: int, total: Tensor, parts: dict[str, Tensor], micros: list[Batch]
    ) -> Report:
        """One small sum over all ranks that tells everyone the losses, whether one is not finite, and whether to stop."""
        bad = (~torch.isfinite(total)).float()
        stop = torch.full((), float(self.signals.received is not None), device=self.world.device)
        vector = self.world.sum(torch.stack([bad, stop, total, *parts.values()]))
        names = ["loss", *(f"loss/{name}" for name in parts)]
        return Report(
            step, vector, names, [sample for batch in micros for sample in batch.ids], bad
        )

    def read(self) -> tuple[bool, dict[str, float]]:
        """(stop asked for, losses of the last step) of the steps not read yet.

        Errors: InternalError on all ranks when one of their losses is not finite, naming step and images.
        """
        reports, self.reports = self.reports, []
        rows = torch.stack(
            [report.vector for report in reports]
        ).tolist()  # one wait for the device
        for report, (bad, _, loss, *_) in zip(reports, rows, strict=True):
            if bad:
                raise self.not_finite(report, loss)
        return any(row[1] > 0 for row in rows), dict(
            zip(reports[-1].names, rows[-1][2:], strict=True)
        )

    def not_finite(self, report: Report, loss: float) -> InternalError:
        """The error that names the images of every rank whose loss was not finite; all ranks call it together."""
        shares = self.world.gather(report.ids if report.bad.item() else [])
        images = [sample for share in shares for sample in share]
        named = ", ".join(images[:8]) + (f" and {len(images) - 8} more" if len(images) > 8 else "")
        return InternalError(
            f"step {report.step + 1}: the loss is not finite ({loss}) on images {named}; it changed no weight. "
            f"{checks.WAYS_OUT}"
        )

    # ------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        """Train from where the folder stands to the end; the summary. Errors: Interrupted after a signal, everything saved."""
        start, evaluated = self.restore()
        with self.signals:
            self.log = self.open_log(start)
            try:
                self.prepare(start)
                if start and self.due(start, self.eval_every) and not evaluated:
                    self.validate(start)
                for step, micros in enumerate(self.batches(start, self.run.train.steps), start):
                    if self.out_of_patience(step):
                        break
                    self.step(step, micros)
                    self.after(step + 1)
                return self.finish()
            finally:
                self.log.close()

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step from `start` to before `stop`, on the device."""
        train, world = self.run.train, self.world
        place = (world.rank, world.size, train.accumulate)
        order = StreamSampler(
            len(self.train_set), train.batch_size, train.seed, start, stop, *place, self.groups
        )
        pin = world.device.type == "cuda"
        loader = iter(
            train_loader(self.train_set, self.augment, train.seed, order, self.workers, pin)
        )
        while micros := [
            batch.to(world.device) for batch in itertools.islice(loader, train.accumulate)
        ]:
            yield micros

    def after(self, done: int) -> None:
        """What happens once `done` updates are made: log, validate, save, stop."""
        if self.world.device.type == "cuda" and not self.host_needs(done):
            self.log.advance(done, None)  # leave the GPU running
            return
        stop, losses = self.read()
        self.precision.check()
        self.last_train = losses
        self.log.advance(done, losses["loss"])
        if done % self.run.log.every == 0 or done == 1:
            self.log.train(done, {**losses, "lr": self.optimizer.param_groups[0]["lr"]})
        if stop:
            self.save(done, evaluated=False)
            raise Interrupted(
                f"{self.signals.received or 'a signal'} at step {done}: saved; go on with: segtrain resume={self.folder}"
            )
        if self.due(done, self.eval_every):
            self.validate(done)
        elif self.run.train.save_every and self.due(done, self.run.train.save_every):
            self.save(done, evaluated=False)

    def host_needs(self, done: int) -> bool:
        """On a GPU the report of a step is read only every few steps: reading waits for the device."""
        every = (self.run.log.every, self.eval_every, self.run.train.save_every or self.eval_every)
        return (
            done == 1
            or done == self.run.train.steps
            or any(done % n == 0 for n in every)
            or done % 4 == 0
        )

    def due(self, done: int, every: int) -> bool:
        """Every so many steps, and at the end."""
        return done % every == 0 or done == self.run.train.steps

    # ------------------------------------------------------------------ validation

    def validate(self, done: int) -> None:
        """Measure on the validation split, log, save. A stop in between saves without the measurement and ends the run."""
        network = self.ema.module if self.ema is not None else self.network
        if count := self.run.train.bn_batches:
            batch_norm.estimate(
                network, self.batches(0, count), count, self.precision, self.world, self.signals
            )
        self.world.share_buffers(network)
        predictor = parts_module.predictor(self.run, network)
        evaluator = parts_module.evaluator(self.run.dataset, self.names)
        try:
            self.numbers = evaluate(
                network,
                predictor,
                self.val_set,
                evaluator,
                world=self.world,
                precision=self.precision,
                criterion=self.criterion,
                workers=self.workers,
                advance=self.log.evaluating,
                stop=lambda: self.signals.received is not None,
            )
        except Stopped:
            self.save(done, evaluated=False)
            raise Interrupted(
                f"stopped while validating step {done}: saved; go on with: segtrain resume={self.folder}"
            ) from None
        value = self.monitored()
        if value is not None and (
            self.best is None or self.sign() * value > self.sign() * self.best["value"]
        ):
            self.best = {"step": done, "value": value}
        self.log.validation(done, self.numbers)
        self.draw_samples(done, predictor)
        self.network.train()
        self.save(done, evaluated=True, score=None if value is None else self.sign() * value)

    def sign(self) -> int:
        """Scores are compared as 'more is better'."""
        return 1 if self.run.train.monitor_mode == "max" else -1

    def monitored(self) -> float | None:
        """The scalar that decides which checkpoint is best."""
        known = {
            **self.numbers,
            **{f"train/{key}": value for key, value in self.last_train.items()},
        }
        return known.get(self.run.train.monitor)  # None: a class that this split does not hold

    def out_of_patience(self, step: int) -> bool:
        """Whether the monitored scalar has not improved for `patience` validations."""
        patience = self.run.train.patience
        if patience is None or self.best is None or step % self.eval_every:
            return False
        if waited := (step - int(self.best["step"])) // self.eval_every >= patience:
            self.log.text(
                f"step {step}: {self.run.train.monitor} has not improved for {patience} validations; stopping"
            )
        return waited

    def draw_samples(self, done: int, predictor: Any) -> None:
        """The first validation images with truth and prediction, as PNG and in TensorBoard."""
        if not self.world.main:
            return
        predictor.model.eval()
        for index in range(min(self.run.log.images, len(self.val_set))):
            sample = self.val_set[index]
            image = torch.from_numpy(sample.image).permute(2, 0, 1)
            with torch.inference_mode(), self.precision:
                prediction = predictor(image, sample.id)
            colors, title = self.val_set.labels.colors, f"{sample.id}, step {done}"
            picture = panels.panel(
                sample.image, sample.target, prediction, self.names, colors, title
            )
            picture_files.save(self.folder / "samples" / f"{Path(sample.id).name}.png", picture)
            self.log.image(done, sample.id, picture)

    # ------------------------------------------------------------------ checkpoints

    def save(self, done: int, evaluated: bool, score: float | None = None) -> None:
        """Rank 0 writes a checkpoint of `done` updates; the others wait. Metrics reach the disk before it does."""
        checks.finite_weights(self.network, done, self.world)
        if self.world.main:
            payload = {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.precision.state_dict(),
            }
            if self.ema is not None:
                payload["ema"] = self.ema.state_dict()
            meta = {
                "config": load_yaml(self.folder / "config.yaml"),
                "class_names": self.names,
                "labels": self.train_set.labels.record(),
                "evaluated": evaluated,
                "score": score,
                "best": self.best,
                "numbers": self.numbers if evaluated else {},
                "train": self.last_train,
                "samples_seen": done * self.run.train.batch_size,
            }
            self.log.sync()
            writing.save(self.folder / "checkpoints", done, payload, meta, keep=self.run.train.keep)
        self.world.barrier()

    def restore(self) -> tuple[int, bool]:
        """(updates already made, whether that step was validated) from the newest whole checkpoint all ranks agree on."""
        found = reading.latest(self.folder / "checkpoints") if self.world.main else None
        path = self.world.broadcast(str(found.path) if found else None)
        if path is None:
            damaged = sorted((self.folder / "checkpoints").glob("step_*"))
            if damaged:
                raise UserError(
                    f"{damaged[-1].parent}: every checkpoint is damaged, none to go on from; "
                    "start a new run with another hydra.run.dir"
                )
            if self.world.main:
                rewind(self.folder, 0)
            if self.run.train.init:
                self.start_from(self.run.train.init)
            return 0, False
        found = found or reading.find(path)
        match_module.load_exactly(self.network, found.read("model"), found.path)
        self.optimizer.load_state_dict(found.read("optimizer"))
        self.precision.load_state_dict(found.read("precision"))
        if self.ema is not None:
            self.ema.load_state_dict(found.read("ema"))
        self.best = found.meta["best"]
        self.numbers, self.last_train = found.meta["numbers"], found.meta.get("train", {})
        if self.world.main:
            rewind(self.folder, found.step)
        return found.step, bool(found.meta["evaluated"])

    def start_from(self, source: str) -> None:
        """`train.init`: weights of another run or file; class rows matched by name, the rest made new, a table printed."""
        loaded, names = reading.weights_of(source)
        state, match = match_module.init_from(self.network.state_dict(), loaded, self.names, names)
        self.network.load_state_dict(state)
        if self.ema is not None:
            self.ema.module.load_state_dict(state)
        if self.world.main:
            print(f"train.init={source}\n{match.table()}")

    # ------------------------------------------------------------------ beginning and end

    def open_log(self, start: int) -> RunLog:
        """Console, metrics, TensorBoard and bar; silent on ranks above 0."""
        log, train = self.run.log, self.run.train
        return RunLog(
            self.folder,
            train.steps,
            start,
            train.batch_size,
            tensorboard=log.tensorboard,
            progress=log.progress,
            enabled=self.world.main,
        )

    def prepare(self, start: int) -> None:
        """Say what is about to happen, and check every label before the first step."""
        train, world = self.run.train, self.world
        parameters = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        self.log.text(
            f"run {self.folder}\n"
            f"data   {len(self.train_set)} images to train on, {len(self.val_set)} to validate on, {len(self.names)} classes\n"
            f"model  {type(self.network).__name__}, {parameters:,} parameters\n"
            f"batch  {train.batch_size} images = {world.size} processes x {train.accumulate} micro-batches x "
            f"{train.batch_size // world.size // train.accumulate} images\n"
            f"device {world.device}, {train.precision}, {torch.get_num_threads()} threads, {self.workers} loader workers, "
            f"steps {start} to {train.steps}\n{describe(self.optimizer)}"
        )
        if measured_split(self.run.dataset) == self.run.dataset["train_split"]:
            self.log.text(
                "note   validation uses the training split: its scores say nothing about new images"
            )
        if train.verify and start == 0:
            for dataset in (self.train_set, self.val_set):
                if hasattr(dataset, "files"):  # a generated set has nothing on disk to check
                    mine = shard(len(dataset), world.rank, world.size)
                    report = verify_labels(dataset, mine, scored=dataset is self.val_set)
                    complain(
                        [problem for part in world.gather(report.problems) for problem in part]
                    )

    def finish(self) -> dict[str, Any]:
        """Close the run: summary.json with the final numbers."""
        self.world.barrier()
        if not self.world.main:
            return {}
        step = reading.latest(self.folder / "checkpoints")
        assert step is not None
        summary = {
            "status": "complete",
            "step": step.step,
            "metric": self.run.train.monitor,
            "best": self.best,
            "final": self.numbers,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            **self.log.totals(),
            "seed": self.run.train.seed,
            **environment(),
        }
        write_json(self.folder / "summary.json", summary)
        self.log.text(f"{final_table(self.numbers)}\nwritten to {self.folder}")
        return summary


def fit(run: RunConf, folder: Path, world: World) -> dict[str, Any]:
    """Train `run` in `folder` on this rank; continues where the folder's newest whole checkpoint stands.

    Returns the summary (empty on ranks above 0). Errors: Interrupted, InternalError, DataError, DiskError.
    """
    forget_peak_memory()
    return Trainer(run, folder, world).fit()
