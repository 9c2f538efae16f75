"""The settings in force, as checkpoints hold them, and the evidence that they are the run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.checkpoints.manifest import Checkpoint
from segtrain.config.files import differences, load_yaml
from segtrain.config.old_names import modern
from segtrain.logs.run_log import RunLog
from segtrain.runtime.run_folder import started_in


@dataclass
class Settings:
    """The settings in force as text, for checkpoints and log."""

    config: Mapping[str, Any]  # environment variables by their names
    started_in: str | None  # the folder that relative places mean
    changes: list[str]  # a line for each setting that this start changes
    file: Path  # config.yaml, evidence of how the run was begun
    content: bytes | None  # of that file; None once it was changed, and said so

    @classmethod
    def read(
        cls, folder: Path, config: Mapping[str, Any] | None, newest: Checkpoint | None
    ) -> Settings:
        """Return those of a run: `config`, or its config.yaml, whose newest checkpoint is given."""
        file = folder / "config.yaml"
        begun = load_yaml(file)
        config = begun if config is None else config
        saved = begun if newest is None else newest.meta.get("config", begun)
        changes = [
            f"changed by this resume: {key} from {before} to {now}"
            for key, (before, now) in differences(_shown(saved), _shown(config)).items()
        ]
        started = started_in(folder)
        if started is None and newest is not None:
            started = newest.meta.get("started_in")
        return cls(config, started, changes, file, file.read_bytes())

    def warn_of_changes(self, log: RunLog) -> None:
        """Say once that config.yaml was changed while the run goes on."""
        if self.content is None:
            return
        try:
            same = self.file.read_bytes() == self.content
        except OSError:
            same = False
        if not same:
            self.content = None
            log.text(
                f"warning: {self.file} was changed while this run trains; that changes nothing, "
                "and a resume will ask to put it back"
            )


def _shown(config: Any) -> dict[str, Any]:
    """Return a config with today's names, of its writers only the names."""
    plain = modern(config)
    return {**plain, "writer": list(plain.get("writer") or {})}
