"""What becomes of a training sample that cannot be used: all ranks agree before they update.

One rank meets it. Were it to end alone, the others would wait for it in their update, and the steps
since the last checkpoint would be lost.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segtrain.config import places
from segtrain.contracts import Dataset
from segtrain.data.images import shown
from segtrain.data.verify import Report
from segtrain.errors import (
    DataError,
    InternalError,
    ResourceError,
    SegtrainError,
    complain,
    words_of,
)
from segtrain.logs.metrics_file import BAD_SAMPLES, read_lines_of
from segtrain.logs.run_log import RunLog
from segtrain.runtime.distributed import World
from segtrain.runtime.exhausted import exhausted
from segtrain.structures.samples import Batch, Fault


@dataclass
class BadSamples:
    """The samples that a run leaves out, the same on all ranks, and how many it may."""

    dataset: Dataset
    spare: int
    known: set[str]  # their ids
    log: RunLog
    world: World

    @classmethod
    def of(
        cls, folder: Path, dataset: Dataset, spare: int, log: RunLog, world: World
    ) -> BadSamples:
        """Read those that the run in `folder` has met until the step it was restored at."""
        lines = read_lines_of(folder / BAD_SAMPLES) if world.main else []
        known = world.broadcast([line["sample"] for line in lines])
        return cls(dataset, spare, set(known), log, world)

    def together(
        self, batches: Iterator[list[Batch]], step: int
    ) -> Iterator[list[Batch] | SegtrainError]:
        """Yield this rank's micro-batches of each update from `step` on, once all have theirs.

        Where one rank has none, all yield its error, and end.
        """
        while True:
            share, error = _next(batches)
            faults = [fault for batch in share for fault in batch.faults]
            if self.world.any(bool(faults) or error is not None):
                error = self._agreed(step + 1, faults, error)
            if error is not None:
                yield error
            if error is not None or not share:
                return
            yield share
            step += 1

    def verified(self, report: Report) -> None:
        """Leave out what a pass over the whole training split found. Errors: DataError."""
        faults = sorted(report.bad)
        reasons = {fault.reason for fault in faults}
        complain([problem for problem in report.problems if problem not in reasons])
        if error := self._add(0, faults):
            raise error

    def _agreed(
        self, step: int, faults: list[Fault], error: SegtrainError | None
    ) -> SegtrainError | None:
        """Return the first error of the ranks in the words of its rank; all ranks call it."""
        told = self.world.gather((faults, None if error is None else (str(error), error.exit_code)))
        for _, failure in told:
            if failure is not None:
                words, code = failure
                if code == ResourceError.exit_code:
                    return ResourceError(words)
                if code != DataError.exit_code:
                    return InternalError(words)
                return self._too_many(words) if self.spare else DataError(words)
        return self._add(step, [fault for each, _ in told for fault in each])

    def _add(self, step: int, faults: Sequence[Fault]) -> DataError | None:
        """List those that are new; return the error where they are too many."""
        new: dict[str, Fault] = {}
        for fault in faults:
            if self.dataset.ids[fault.index] not in self.known:
                new.setdefault(self.dataset.ids[fault.index], fault)
        if len(self.known) + len(new) > self.spare:
            return self._too_many(next(iter(new.values())).reason)
        for name, (index, reason) in new.items():
            files = self.dataset.files(index)
            file = name if files is None else shown(files.image)
            self.log.bad_sample(step, name, places.hidden(file), places.hidden(reason))
        self.known |= new.keys()
        return None

    def _too_many(self, reason: str) -> DataError:
        return DataError(
            f"{reason}; more than {self.spare} of {len(self.dataset)} samples cannot be used, and "
            "train.bad_samples=skip leaves out no more; segdata verify lists them"
        )


def _next(batches: Iterator[list[Batch]]) -> tuple[list[Batch], SegtrainError | None]:
    """Return the micro-batches of the next update, none at the end, or why there are none."""
    try:
        return next(batches, []), None
    except SegtrainError as error:
        return [], error.with_traceback(None)  # frames would keep workers alive
    except Exception as error:
        if ran_out := exhausted(error):
            return [], ResourceError(ran_out)
        traceback.print_exc()
        return [], InternalError(f"the images of a step cannot be loaded: {words_of(error)}")
