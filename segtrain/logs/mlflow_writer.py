"""MLflow: a run goes on in one record, in a folder or on a server.

The record is asked what it holds when a start begins, and after a failure: each number is in it
once, whenever the run was killed.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from segtrain.errors import words_of
from segtrain.logs.record import Rows, earlier, record_name, title
from segtrain.runtime.files import warn_once
from segtrain.runtime.run_folder import started_in

FOLDER = "mlflow"  # in the run folder
TAG = "segtrain.id"  # by which a run is found again
# What a server must do in: it is asked while the run waits. Users may set them otherwise.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
SECONDS_APART = 60.0  # between tries to reach a server that fails; chosen by hand
# Limits of MLflow: numbers and settings of one request, characters of a setting.
MOST_NUMBERS = 1000
MOST_SETTINGS = 100
MOST_CHARACTERS = 6000


class MLflow:
    """Keep a record of the run in MLflow.

    `store` is a folder; without one it is MLFLOW_TRACKING_URI, else RUN/mlflow. `experiment` is
    MLFLOW_EXPERIMENT_NAME, else segtrain. A server that does not answer is said once, and asked
    again each minute. Errors: ImportError where MLflow is missing.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        store: Path | None = None,
        experiment: str | None = None,
        name: str | None = None,
    ) -> None:
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Folders are what MLflow keeps up but no longer extends; a database needs more packages.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Only here: importing it takes seconds, and runs without this writer do without it.
        try:
            mlflow: Any = importlib.import_module("mlflow")
        except Exception as error:  # whatever its packages raise, no setting of the run is wrong
            raise ImportError(f"{words_of(error)} (pip install 'segtrain[mlflow]')") from error

        self._mlflow = mlflow
        self._folder = folder
        server = os.environ.get("MLFLOW_TRACKING_URI")
        place = store or (None if server else folder.absolute() / FOLDER)
        # A resume in another folder means the same store.
        home = Path(started_in(folder) or ".").absolute()
        self._uri = (home / place).as_uri() if place else str(server)
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "segtrain"
        self._name = name or title(folder)
        self._start = start
        self._settings: Mapping[str, Any] = {}
        self._client: Any = None
        self._run_id = ""  # "" until the record is open
        self._draws = True
        self._complete = False
        self._rows = Rows(self._send)
        self._waiting: list[Any] = []  # numbers that MLflow has not taken yet
        self._there: set[tuple[str, int]] = set()  # names and steps that it held before
        self._unsure = False  # whether it may hold others by now
        self._again = 0.0  # when a server that failed is asked again
        self._said: set[str] = set()  # kinds of failure that were warned of

    def begin(self, settings: Mapping[str, Any]) -> str | None:
        """Open the record, and send what it lacks; a server that fails is warned of."""
        self._settings = settings
        for step, values in earlier(self._folder):
            self._waiting += self._metrics(step, values)
        self._deliver()
        return f"track  MLflow: {self._name} in {self._hidden(self._uri)}" if self._run_id else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of `step`."""
        self._rows.add(step, values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Add a picture (H, W, 3) uint8 RGB, unless the record held this step already."""
        newest = max((there for _, there in self._there), default=0)
        if not self._run_id or not self._draws or step <= newest or self._away:
            return
        try:
            self._client.log_image(self._run_id, picture, key=_plain(name), step=step)
        except Exception as error:  # of a store that this machine cannot reach, among others
            self._draws = False
            self._warn("pictures", f"{words_of(error)}; it gets no pictures")

    def complete(self, numbers: Mapping[str, float]) -> None:
        """Have the record say that the run is complete; it holds the numbers already."""
        self._complete = True

    def close(self) -> None:
        """Send the rest."""
        self._again = 0.0
        self._rows.send()
        self._deliver()
        if self._run_id and not self._away:
            self._client.set_terminated(self._run_id, "FINISHED" if self._complete else "KILLED")

    @property
    def _away(self) -> bool:
        """Whether the server failed just now."""
        return time.monotonic() < self._again

    def _send(self, step: int, row: Mapping[str, float]) -> None:
        self._waiting += self._metrics(step, row)
        self._deliver()

    def _metrics(self, step: int, row: Mapping[str, float]) -> list[Any]:
        now = round(1000 * time.time())
        named = {_metric(name): value for name, value in row.items()}
        return [
            self._mlflow.entities.Metric(name, value, now, step)
            for name, value in named.items()
            if (name, step) not in self._there
        ]

    def _deliver(self) -> None:
        """Send what is waiting; where that fails it stays, until `SECONDS_APART` have passed."""
        if self._away:
            return
        try:
            if not self._run_id:
                self._open()
            if self._unsure:
                self._leave_out_what_is_there()
            while self._waiting:
                self._client.log_batch(self._run_id, metrics=self._waiting[:MOST_NUMBERS])
                del self._waiting[:MOST_NUMBERS]
        except Exception as error:  # of the network, the server, the disk
            self._unsure = True
            self._again = time.monotonic() + SECONDS_APART
            self._warn(
                "server",
                f"{words_of(error)}; the run goes on, and what MLflow has not taken is sent once "
                "it answers, or by a resume",
            )

    def _open(self) -> None:
        """Find the run's record, or make one. Errors: those of MLflow."""
        self._client = self._client or self._mlflow.MlflowClient(tracking_uri=self._uri)
        client = self._client
        experiment = self._experiment_id()
        own = record_name(self._folder)
        found = client.search_runs([experiment], f"tags.`{TAG}` = '{own}'", max_results=1)
        run = (
            found[0]
            if found
            else client.create_run(experiment, run_name=self._name, tags={TAG: own})
        )
        self._run_id = run.info.run_id
        self._unsure = bool(found)
        if found:
            client.update_run(self._run_id, status="RUNNING")
        self._describe(run.data.params)
        if self._uri.startswith("file:") and not run.info.artifact_uri.startswith(f"{self._uri}/"):
            self._draws = False  # it was moved here, and says where it lay: nothing goes there
            self._warn(
                "pictures",
                f"pictures of {self._name} lie elsewhere, {run.info.artifact_uri}: none is added",
            )

    def _experiment_id(self) -> str:
        client = self._client
        if (known := client.get_experiment_by_name(self._experiment)) is None:
            try:
                return client.create_experiment(self._experiment)
            except Exception:  # another run made it meanwhile
                known = client.get_experiment_by_name(self._experiment)
                if known is None:
                    raise
        return known.experiment_id

    def _describe(self, known: Mapping[str, str]) -> None:
        """Send the settings; MLflow changes none, so what a resume changed becomes a tag."""
        entities = self._mlflow.entities
        values = {
            _plain(key): str(value)[:MOST_CHARACTERS] for key, value in self._settings.items()
        }
        new = [entities.Param(key, value) for key, value in values.items() if key not in known]
        changed = [
            entities.RunTag(f"{key} from step {self._start}", value)
            for key, value in values.items()
            if known.get(key, value) != value
        ]
        for first in range(0, max(len(new), len(changed)), MOST_SETTINGS):
            part = slice(first, first + MOST_SETTINGS)
            self._client.log_batch(self._run_id, params=new[part], tags=changed[part])

    def _leave_out_what_is_there(self) -> None:
        """Forget what is waiting and in the record."""
        run = self._client.get_run(self._run_id)
        self._there = {
            (name, point.step)
            for name in run.data.metrics
            for point in self._client.get_metric_history(self._run_id, name)
        }
        self._waiting = [
            number for number in self._waiting if (number.key, number.step) not in self._there
        ]
        self._unsure = False

    def _warn(self, kind: str, line: str) -> None:
        """Say once what failed."""
        if kind not in self._said:
            self._said.add(kind)
            warn_once(f"MLflow: {self._hidden(line)}")

    def _hidden(self, text: str) -> str:
        """Return text without the name and password that an address may hold."""
        user, at, _ = urlsplit(self._uri).netloc.rpartition("@")
        return text.replace(f"{user}{at}", "") if at else text


def _metric(name: str) -> str:
    """Return the name of a number in MLflow.

    In a folder `val/loss` is a file, and so no folder of `val/loss/seg`: only the first part is.
    """
    group, _, rest = name.partition("/")
    return _plain(f"{group}/{rest.replace('/', '.')}")


def _plain(name: str) -> str:
    """Return a name in the characters that MLflow takes; another one is its number: `_2c_`."""
    return re.sub(r"[^\w.\- /]", lambda found: f"_{ord(found[0]):x}_", name)
