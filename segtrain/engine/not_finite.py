"""Look at the numbers of every update: one that is not finite ends the run, or is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from segtrain.config.schema import RunConf
from segtrain.engine.parts import Parts
from segtrain.engine.state import WAYS_OUT, TrainState
from segtrain.engine.update import Outcome, Report, losses, put_back, read
from segtrain.errors import InternalError
from segtrain.logs.run_log import RunLog
from segtrain.rng import seed_for
from segtrain.runtime.distributed import World

# How many updates may be left out, in a row and of all. Chosen by hand: more than a bad image or
# two cause, and so few that what is learned does not depend on them.
SKIPPED_IN_A_ROW = 10
SKIPPED_OF_ALL = 1e-3
NAMES_SHOWN = 8


class Numbers:
    """Judge the numbers of the updates of one start of a run, on all ranks alike."""

    def __init__(
        self, run: RunConf, parts: Parts, state: TrainState, log: RunLog, world: World
    ) -> None:
        self.run = run
        self.parts = parts
        self.state = state
        self.log = log
        self.world = world

    def settle(self, pending: list[Report]) -> bool:
        """Wait for all `pending` updates, empty the list, judge them, and tell whether to stop.

        The state gets the losses of the newest. All ranks call it together. Errors: InternalError.
        """
        outcomes = read(pending)
        for outcome in outcomes:
            self.judge(outcome)
        if outcomes:
            self.state.losses = outcomes[-1].losses
            self.state.precision.check()
        return any(outcome.stop for outcome in outcomes)

    def judge(self, outcome: Outcome) -> None:
        """Go on from an update, count it as skipped, or end the run. All ranks call it together.

        Errors: InternalError on all ranks that names step and images.
        """
        state = self.state
        if not outcome.bad:
            state.skipped_in_a_row = 0
            return
        put_back(state.network, outcome.report.buffers)
        step = outcome.report.step + 1
        said = f"step {step}: {_kind(outcome)}"
        if not all(torch.isfinite(parameter).all() for parameter in state.network.parameters()):
            raise InternalError(
                f"{said}, and neither are the weights: an update, most likely one before it, "
                f"ruined them. {WAYS_OUT}"
            )
        said += f" {self._whose(outcome)}"
        if self.run.train.non_finite == "skip":
            state.skipped += 1
            state.skipped_in_a_row += 1
            over = self._over()
            if not over:
                self.log.text(f"warn   {said}; skipped, update {state.skipped} of this kind")
                return
            said += f"; {over}"
        raise InternalError(f"{said}; it changed no weight. {WAYS_OUT}")

    def _over(self) -> str:
        """Say which bound the skipped updates are above, "" where they are not."""
        of_all = max(1, math.floor(SKIPPED_OF_ALL * self.run.train.steps))
        if self.state.skipped > of_all:
            return f"{of_all} may be skipped in {self.run.train.steps} steps, this is one more"
        if self.state.skipped_in_a_row > SKIPPED_IN_A_ROW:
            return f"{SKIPPED_IN_A_ROW} may be skipped in a row, this is one more"
        return ""

    def _whose(self, outcome: Outcome) -> str:
        """Say on which images a number is not finite; all ranks call it together.

        The step is computed once more, each micro-batch alone: gradients that were summed over
        micro-batches and ranks do not tell where they come from.
        """
        report = outcome.report
        again = self._named(self._culprits(report))
        if again:
            return f"on images {again}"
        if flagged := self._named(report.ids if report.bad.item() else []):
            return f"on images {flagged}"
        return f"on one of images {self._named(report.ids)}, but not when it is computed once more"

    def _named(self, mine: Sequence[str]) -> str:
        images = [sample_id for share in self.world.gather(list(mine)) for sample_id in share]
        more = len(images) - NAMES_SHOWN
        return ", ".join(images[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")

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


def _kind(outcome: Outcome) -> str:
    """Say which number of an update is not finite."""
    loss = outcome.losses["loss"]
    if not math.isfinite(loss):
        return f"the loss is not finite ({loss})"
    if math.isnan(outcome.norm):
        return f"the gradient is not finite (nan), though the loss is ({loss:g})"
    return f"the gradient is not finite, or above 1.8e19 (norm {outcome.norm:g}, loss {loss:g})"
