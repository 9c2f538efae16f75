"""Look at the numbers of every update.

One that is not finite ends the run, or is left out; one far above what was usual is written down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from segtrain.config import trust
from segtrain.config.schema import RunConf
from segtrain.engine import bad_step
from segtrain.engine.parts import Parts
from segtrain.engine.state import WAYS_OUT, TrainState
from segtrain.engine.update import Outcome, Report, losses, put_back, read
from segtrain.errors import InternalError, first_of
from segtrain.layers.preprocess import record_of
from segtrain.logs.metrics_file import SPIKES
from segtrain.logs.run_log import RunLog
from segtrain.logs.spikes import Usual
from segtrain.rng import seed_for
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World

# How many updates may be left out, in a row and of all. Chosen by hand: more than a bad image or
# two cause, and so few that what is learned does not depend on them.
SKIPPED_IN_A_ROW = 10
SKIPPED_OF_ALL = 1e-3
NAMES_SHOWN = 8


class Numbers:
    """Judge the numbers of the updates of one start of a run, on all ranks alike."""

    def __init__(
        self,
        run: RunConf,
        folder: Path,
        parts: Parts,
        state: TrainState,
        log: RunLog,
        world: World,
    ) -> None:
        self.run = run
        self.folder = folder
        self.parts = parts
        self.state = state
        self.log = log
        self.world = world
        self._usual = {"loss": Usual(), "norm": Usual()}  # begins anew with each start
        self._spikes = 0

    def settle(self, pending: list[Report]) -> bool:
        """Wait for all `pending` updates, empty the list, judge them, and tell whether to stop.

        The state gets the losses of the newest. All ranks call it together. Errors: InternalError.
        """
        outcomes = read(pending)
        for outcome in outcomes:
            self.judge(outcome)
        if outcomes:
            self.state.losses = outcomes[-1].losses
            self.state.norm = outcomes[-1].norm
            try:
                self.state.precision.check()
            except InternalError as error:
                step = outcomes[-1].report.step + 1
                raise self._ended(outcomes[-1].report, f"step {step}: {error}") from None
        return any(outcome.stop for outcome in outcomes)

    def judge(self, outcome: Outcome) -> None:
        """Go on from an update, count it as skipped, or end the run. All ranks call it together.

        Errors: InternalError on all ranks that names step and images.
        """
        state = self.state
        if not outcome.bad:
            state.skipped_in_a_row = 0
            self._note_spikes(outcome)
            return
        put_back(state.network, outcome.report.buffers)
        step = outcome.report.step + 1
        said = f"step {step}: {_kind(outcome)}"
        if not all(torch.isfinite(parameter).all() for parameter in state.network.parameters()):
            raise self._ended(
                outcome.report,
                f"{said}, and neither are the weights: an update, most likely one before it, "
                f"ruined them. {WAYS_OUT}",
            )
        where, images = self._whose(outcome.report)
        said += f" {where} {first_of(images, NAMES_SHOWN)}"
        if self.run.train.non_finite == "skip":
            state.skipped += 1
            state.skipped_in_a_row += 1
            over = self._over()
            if not over:
                self.log.text(f"warn   {said}; skipped, update {state.skipped} of this kind")
                self.log.spike(step, _numbers(outcome), images, skipped=True)
                return
            said += f"; {over}"
        raise self._ended(outcome.report, f"{said}; it changed no weight. {WAYS_OUT}")

    @heartbeat.patiently()
    def _ended(self, report: Report, said: str) -> InternalError:
        """Keep the step, so that it can be computed again, and return the error that ends the run.

        All ranks call it together. The weights are those that the step began with.
        """
        state = self.state
        put_back(state.network, report.buffers)
        shares = self.world.gather([bad_step.plain(batch) for batch in report.micro_batches])
        step = report.step + 1
        kept = f"bad_step_{step}"
        written = []
        if state.settings is not None:  # on rank 0
            meta = {
                "config": dict(state.settings.config),
                "started_in": state.settings.started_in,
                "class_names": self.parts.class_names,
                "labels": self.parts.train_set.labels.record(),
                "input": record_of(state.network),
                "said": said,
            }
            with self.log.aside(kept):
                path = bad_step.write(self.folder, step, state.network, shares, meta)
                written.append(trust.command(f"replay={path}"))
        again = self.world.gather(written)[0]
        return InternalError(f"{said}; compute it again: {again[0]}" if again else said)

    def _over(self) -> str:
        """Say which bound the skipped updates are above, "" where they are not."""
        of_all = max(1, math.floor(SKIPPED_OF_ALL * self.run.train.steps))
        if self.state.skipped > of_all:
            return f"{of_all} may be skipped in {self.run.train.steps} steps, this is one more"
        if self.state.skipped_in_a_row > SKIPPED_IN_A_ROW:
            return f"{SKIPPED_IN_A_ROW} may be skipped in a row, this is one more"
        return ""

    def _note_spikes(self, outcome: Outcome) -> None:
        """Write down a loss or a norm far above what was usual. All ranks call it together."""
        numbers = _numbers(outcome)
        usual = {name: self._usual[name].before(value) for name, value in numbers.items()}
        far = {name: before for name, before in usual.items() if before is not None}
        if not far:
            return
        step = outcome.report.step + 1
        told = {**numbers, **{f"usual_{name}": before for name, before in usual.items()}}
        self.log.spike(step, told, self._gathered(outcome.report.ids))
        self._spikes += 1
        if self._spikes == 1:
            words = " and ".join(
                f"{name} {numbers[name]:.4g}, usual is {before:.4g}" for name, before in far.items()
            )
            self.log.text(f"note   step {step}: {words}; this and others like it: {SPIKES}")

    @heartbeat.patiently()
    def _whose(self, report: Report) -> tuple[str, list[str]]:
        """Return the images that gave a number which is not finite, behind how sure that is.

        All ranks call it together. The step is computed once more, each micro-batch alone: a
        gradient that was summed over micro-batches and ranks does not tell where it comes from.
        """
        if again := self._gathered(self._culprits(report)):
            return "on images", again
        if flagged := self._gathered(report.ids if report.bad.item() else []):
            return "on images", flagged
        return "only once, not when computed again, on one of images", self._gathered(report.ids)

    def _gathered(self, mine: Sequence[str]) -> list[str]:
        return [sample_id for share in self.world.gather(list(mine)) for sample_id in share]

    def _culprits(self, report: Report) -> list[str]:
        """Return this rank's images whose micro-batch alone gives a number that is not finite."""
        state = self.state
        parameters = [p for p in state.network.parameters() if p.requires_grad]
        seed = seed_for(self.run.train.seed, "dropout", report.step, self.world.rank)
        found: list[str] = []
        state.optimizer.zero_grad(set_to_none=True)
        computed = losses(
            self.parts.loss, state.network, state.precision, report.micro_batches, seed, self.world
        )
        for batch, (loss, _) in zip(report.micro_batches, computed, strict=True):
            gradients = torch.autograd.grad(loss * self.world.size, parameters, allow_unused=True)
            norm = nn.utils.get_total_norm([each for each in gradients if each is not None])
            if not (torch.isfinite(loss) and torch.isfinite(norm.square())):
                found += batch.ids
        put_back(state.network, report.buffers)
        return found


def _numbers(outcome: Outcome) -> dict[str, float]:
    return {"loss": outcome.losses["loss"], "norm": outcome.norm}


def _kind(outcome: Outcome) -> str:
    """Say which number of an update is not finite."""
    loss = outcome.losses["loss"]
    if not math.isfinite(loss):
        return f"the loss is not finite ({loss})"
    if math.isnan(outcome.norm):
        return f"the gradient is not finite (nan), though the loss is ({loss:g})"
    return f"the gradient is not finite, or above 1.8e19 (norm {outcome.norm:g}, loss {loss:g})"
