"""What W&B and MLflow hold of a run, read back from their own files."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# (phase, name, step) -> value, and how often: the lines of metrics.jsonl, apart.
Numbers = list[tuple[str, int, float]]

BLOCK = 32768  # of the log format of LevelDB, in which W&B writes
HEAD = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def lines(run: Path) -> Numbers:
    """The numbers of metrics.jsonl, sorted."""
    found = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        phase = line.pop("phase")
        step = line.pop("step")
        found += [(f"{phase}/{name}", step, v) for name, v in line.items() if v is not None]
    return sorted(found)


def of_lines(numbers: Numbers) -> Numbers:
    """Those of a record that metrics.jsonl holds, sorted; equal ones stay apart."""
    return sorted(
        number
        for number in numbers
        if re.match(r"(train|val)/(?!grad_norm|loss_scale|lr/)", number[0])
    )


def wandb_records(file: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file; it ends where it was cut off."""
    protobuf = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs segtrain[wandb]")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place = HEAD
    whole = b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEAD])
        if kind not in (FULL, FIRST, MIDDLE, LAST) or place + HEAD + length > len(data):
            return
        whole += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (FULL, LAST):
            record = protobuf.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_files(run: Path) -> list[Path]:
    """The files that `wandb sync RUN/wandb/offline-run-*` uploads."""
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def wandb_numbers(run: Path, files: list[Path] | None = None) -> Numbers:
    """What `wandb sync` would upload, each row as often as it stands there."""
    found = []
    for file in files or wandb_files(run):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                found += [(name, row["_step"], value) for name, value in row.items()]
    return found


def mlflow_numbers(run: Path, store: Path | None = None) -> Numbers:
    """What MLflow has of its only run there, by the names of metrics.jsonl."""
    mlflow = pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    client = mlflow.MlflowClient(tracking_uri=(store or run / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name("segtrain")
    (only,) = client.search_runs([experiment.experiment_id])
    return [
        (name.replace(".", "/"), point.step, point.value)
        for name in only.data.metrics
        for point in client.get_metric_history(only.info.run_id, name)
    ]
