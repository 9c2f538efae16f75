"""Weights & Biases: a run goes on in one record, online, or offline in RUN/wandb.

Online the server tells from which step on. Offline each start makes a folder, and `wandb sync` puts
those of one id behind each other. What a folder holds is known when its start was ended in order;
that of a killed start, whose last seconds may be missing, is moved aside, and the next one begins
where that began.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segtrain.errors import words_of
from segtrain.logs.record import Rows, earlier, record_name, remember, remembered, title
from segtrain.runtime.files import NOT_PLAIN
from segtrain.runtime.run_folder import WANDB

EARLIER = "earlier"  # in W&B's folder: where `wandb sync --sync-all` does not look
OFFLINE = ("offline", "dryrun")
# What a user waits for at the start, and at the end or after a signal: less than the 25 s after
# which a run of several processes, or of a sweep, is killed. Both chosen by hand.
SECONDS_TO_BEGIN = 20
SECONDS_TO_END = 15


class WandB:
    """Keep a record of the run in Weights & Biases.

    What is not set is what W&B's environment variables say (WANDB_PROJECT, WANDB_ENTITY,
    WANDB_NAME, WANDB_MODE), the key always: WANDB_API_KEY, or what `wandb login` stored. Without a
    key or an answer of the server the record is offline. W&B is told the settings, the numbers and
    the pictures; no code, no git revision, no console, nothing of the machine.
    Errors: ImportError where W&B is missing.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's reports on itself
        # Only here: importing it takes seconds, and runs without this writer do without it.
        try:
            wandb: Any = importlib.import_module("wandb")
        except Exception as error:  # whatever its packages raise, no setting of the run is wrong
            raise ImportError(f"{words_of(error)} (pip install 'segtrain[wandb]')") from error

        self._wandb = wandb
        self._folder = folder
        self._named = {"project": project, "entity": entity, "name": name}
        self._mode = mode
        self._run: Any = None
        self._held = _Held(0, [])
        self._first = 0  # the first step that the record does not hold yet
        self._complete = False
        self._rows = Rows(self._log)

    def begin(self, settings: Mapping[str, Any]) -> str:
        """Open the record, and send what it lacks. Errors: those of W&B; OSError."""
        found = self._wandb.setup(self._wandb.Settings(silent=True)).settings
        mode = self._mode or found.mode
        if mode == "disabled":
            return "track  W&B: disabled"
        self._named["project"] = self._named["project"] or found.project or "segtrain"
        self._named["name"] = self._named["name"] or found.run_name or title(self._folder)
        self._held = _Held.of(self._folder)
        self._put_away(self._held.folders)
        failed = None if mode in OFFLINE else self._online(settings)
        if self._run is None:
            self._open(settings, mode="offline")
            self._first = self._held.step + 1
        for step, values in earlier(self._folder):
            self.scalars(step, values)
        if not self._run.offline:
            return f"track  W&B: {self._run.url}"
        sync = f"the record is offline, upload it by: wandb sync {self._folder / WANDB}/offline*"
        return f"warn   W&B: {failed}; {sync}" if failed else f"track  W&B: {sync}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of `step`, which are one row together."""
        if self._run is not None and step >= self._first:
            self._rows.add(step, values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Add a picture (H, W, 3) uint8 RGB to the row of `step`."""
        if self._run is not None and step >= self._first:
            name = re.sub(r"[^\w.\- ]", "_", name)  # it becomes that of a file
            self._rows.add(step, {f"pictures/{name}": self._wandb.Image(picture)})

    def complete(self, numbers: Mapping[str, float]) -> None:
        """Have the record say that the run is complete; it holds the numbers already."""
        self._complete = True

    def close(self) -> None:
        """Send the rest, and wait for the upload `SECONDS_TO_END` at most. Errors: those of W&B."""
        if self._run is None:
            return
        # A step that is stopped before its validation gets that later, and a row cannot grow once
        # it is sent: it is left to the next start.
        if self._complete or self._rows.validated:
            self._rows.send()
        self._run.finish(exit_code=0 if self._complete else 1)
        if self._wandb.run is None:  # else it is in use by the program that calls segtrain
            self._wandb.teardown()  # only then the last lines are in the file
            self._held.keep(self._folder, Path(self._run.settings.sync_dir), self._run.offline)

    def _log(self, step: int, row: dict[str, Any]) -> None:
        self._run.log(row, step=step, commit=True)
        self._held.step = step

    def _online(self, settings: Mapping[str, Any]) -> str | None:
        """Open the record on the server, or return why it cannot be."""
        try:
            # It asks the server, within 10 seconds, before anything is begun there.
            if not self._wandb.login(prompt=False, verify=True):
                return "no API key (WANDB_API_KEY, or wandb login)"
        except Exception as error:  # of the network, the server, the key
            return words_of(error)
        try:
            self._open(settings, mode="online", resume="allow")
        except Exception as error:  # of the project, the account
            self._wandb.teardown()  # else its process would hold on to the run
            self._put_away(self._held.folders)
            return words_of(error)
        self._first = self._run.starting_step
        self._put_away([Path(self._run.settings.sync_dir).name])
        return None

    def _open(self, settings: Mapping[str, Any], **how: Any) -> None:
        self._run = self._wandb.init(
            **self._named,
            **how,
            id=record_name(self._folder),
            dir=self._folder,
            config=dict(settings),
            reinit="create_new",  # beside a run of the program that calls segtrain
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                use_dot_wandb=False,
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                label_disable=True,
                host="",
                program="segtrain",
                x_executable="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=SECONDS_TO_BEGIN,
                finish_timeout=SECONDS_TO_END,
                finish_timeout_raises=True,
            ),
        )

        # A link to W&B's own log that no setting switches off.
        (Path(self._run.settings.log_dir) / "debug-core.log").unlink(missing_ok=True)

    def _put_away(self, but: Collection[str]) -> None:
        """Move the folders of earlier starts aside; nothing in them is opened. Errors: OSError."""
        base = self._folder / WANDB
        aside = base / EARLIER
        if base.is_symlink() or aside.is_symlink():
            raise OSError(f"{base}: a link, or one in it, {NOT_PLAIN}")
        for place in base.glob(f"*run-*-{record_name(self._folder)}*"):
            if place.name not in but:
                aside.mkdir(exist_ok=True)
                place.rename(aside / place.name)


@dataclass
class _Held:
    """What is surely in the record: all rows up to `step`, those offline in `folders`."""

    step: int
    folders: list[str]

    @classmethod
    def of(cls, run: Path) -> _Held:
        """Return what was kept of a run, which may be a stranger's: all or nothing."""
        found = remembered(run).get(WANDB)
        match found:
            case {"step": int(step), "folders": [*names]}:
                there = [str(name) for name in names]
                if all((run / WANDB / name).is_dir() for name in there):
                    return cls(step, there)
        return cls(0, [])

    def keep(self, run: Path, folder: Path, offline: bool) -> None:
        """Keep it, with the folder of a start that was ended in order. Errors: OSError."""
        folders = [*self.folders, folder.name] if offline else []
        remember(run, WANDB, {"step": self.step, "folders": folders})
