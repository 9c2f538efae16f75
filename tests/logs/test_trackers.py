"""Writers that keep a record of a run: what they are told, what goes on after a kill, what fails.

The real libraries are slow to import, so what needs one is slow; the kills are in
tests/reliability/test_tracker_kills.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import SMALL_RUN, typed
from tracked import lines, mlflow_numbers, of_lines, wandb_files, wandb_numbers, wandb_records
from wandb_server import KEY, Server, serving

import segtrain
from segtrain.config import parts
from segtrain.contracts import Tracker
from segtrain.errors import UserError
from segtrain.logs import record, wandb_writer
from segtrain.logs.metrics_file import rewind
from segtrain.logs.mlflow_writer import MLflow, _metric
from segtrain.logs.run_log import RunLog
from segtrain.logs.wandb_writer import WandB
from segtrain.logs.writers import TensorBoard

SETTINGS = {"optimizer.lr": 0.1, "model.norm": "batch", "dataset.crop": [32, 32], "loss.x": None}
PICTURE = np.zeros((4, 6, 3), np.uint8)
SHAPES = [
    *SMALL_RUN,
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.train=4",
    "dataset.val=2",
    "train.threads=1",
    "train.precision=fp32",
    "train.steps=2",
    "log.every=1",
]


class Told:
    """A writer that keeps a record, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        self.told.append((step, name))

    def close(self) -> None:
        self.told.append("closed")

    def begin(self, settings: Mapping[str, Any]) -> str | None:
        self.told.append(dict(settings))
        return "track  here"

    def complete(self, numbers: Mapping[str, float]) -> None:
        self.told.append(dict(numbers))


class Plain:
    """All that a writer must offer."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing in the environment that a user of W&B or MLflow may have there."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return monkeypatch


def text_of(folder: Path) -> str:
    return (folder / "train.log").read_text()


def written(folder: Path, writer: Any, start: int, end: int) -> None:
    """A start of a run that makes the steps after `start`, and validates at each third."""
    log = RunLog(folder, 9, start, 2, writers=[writer], progress=False)
    log.open_records(SETTINGS)
    for step in range(start + 1, end + 1):
        log.advance(step, 1 / step)
        log.train(step, {"loss": 1 / step, "loss/seg": 1 / step, "lr": 0.1}, {"grad_norm": 2.0})
        if step % 3 == 0:
            log.validation(step, {"mIoU": step / 7, "IoU/traffic light, red": 0.5, "IoU/bus": None})
            log.image(step, "a/b", PICTURE)
    if end == 9:
        log.complete({"mIoU": 9 / 7})
    log.close()


# What writers are told


def test_a_tracker_is_told_settings_and_end_and_a_plain_writer_does_without(tmp_path: Path) -> None:
    told = Told()
    plain = Plain()
    assert isinstance(told, Tracker)
    assert not isinstance(plain, Tracker)
    log = RunLog(tmp_path, 10, 0, 8, writers=[plain, told], progress=False)
    log.open_records(SETTINGS)
    log.complete({"mIoU": 0.25, "IoU/bus": None, "loss": float("nan")})
    log.close()
    assert told.told == [SETTINGS, {"val/mIoU": 0.25}, "closed"]
    assert text_of(tmp_path).count("track  here") == 1
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_tensorboard_gets_the_settings_with_the_final_scores_once_in_its_own_folder(
    tmp_path: Path,
) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    written(tmp_path, TensorBoard(tmp_path, 0), 0, 5)
    rewind(tmp_path, 3)
    written(tmp_path, TensorBoard(tmp_path, 3), 3, 9)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert all(file.is_file() for file in files)
    data = [
        plugin.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for file in files
        for event in loader.EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    kinds = [each.WhichOneof("data") for each in data]
    assert sorted(kinds) == ["experiment", "session_end_info", "session_start_info"]
    experiment = data[kinds.index("experiment")].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["val/mIoU"]
    given = data[kinds.index("session_start_info")].session_start_info.hparams
    assert given["optimizer.lr"].number_value == 0.1
    assert given["dataset.crop"].string_value == "[32, 32]"
    assert given["loss.x"].string_value == "None"


# The run's name in a record, rows, what was written before


def test_a_run_keeps_its_name_in_records_and_takes_none_from_a_stranger(tmp_path: Path) -> None:
    name = record.record_name(tmp_path)
    assert len(name) == 16
    assert record.record_name(tmp_path) == name
    for text in ("", "[]", '{"id": 5}', '{"id": "../../x"}', '{"id": "ABCDEF0123456789"}'):
        (tmp_path / "trackers.json").write_text(text)
        assert record.record_name(tmp_path) not in (name, text)


def test_numbers_of_a_step_are_one_row_that_goes_once_another_begins() -> None:
    sent: list[Any] = []
    rows = record.Rows(lambda step, row: sent.append((step, row)))
    rows.add(1, {"train/loss": 1.0})
    rows.add(1, {"time/images_per_second": 2.0})
    assert (sent, rows.validated) == ([], False)
    rows.add(2, {"val/mIoU": 0.5})
    assert sent == [(1, {"train/loss": 1.0, "time/images_per_second": 2.0})]
    assert rows.validated
    rows.send()
    rows.send()
    assert sent[1:] == [(2, {"val/mIoU": 0.5})]


def test_what_was_written_before_comes_back_by_the_names_that_writers_get(tmp_path: Path) -> None:
    told = Told()
    written(tmp_path, told, 0, 3)
    live: dict[int, dict[str, float]] = {}
    for step, values in (each for each in told.told if isinstance(each, tuple)):
        if isinstance(values, dict):
            live[step] = {**live.get(step, {}), **values}
    back: dict[int, dict[str, float]] = {}
    for step, values in record.earlier(tmp_path):
        assert step >= max(back, default=0)
        back[step] = {**back.get(step, {}), **values}
    assert back == live


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("train/loss", "train/loss"),
        ("val/loss/seg", "val/loss.seg"),
        ("val/segm/AP/car", "val/segm.AP.car"),
        ("val/IoU/traffic light, red", "val/IoU.traffic light_2c_ red"),
        ("val/IoU/caf\u00e9", "val/IoU.caf\u00e9"),
    ],
)
def test_names_in_mlflow_are_files_beside_each_other(name: str, there: str) -> None:
    assert _metric(name) == there


# What is missing, or does not answer


@pytest.mark.parametrize(("name", "library"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing_is_said_once_with_how_to_install_it(
    tmp_path: Path, clean: pytest.MonkeyPatch, name: str, library: str
) -> None:
    clean.setitem(sys.modules, library, None)
    run = segtrain.compose([*SHAPES, f"writer=[{name}]"])
    log = RunLog(tmp_path, 1, 0, 1, progress=False)
    with log.aside(f"writer {name}"):
        log.add(parts.writer(run, name, tmp_path, 0))
    log.open_records(SETTINGS)
    log.train(1, {"loss": 1.0})
    log.close()
    assert text_of(tmp_path).count("warn") == 1
    assert f"(pip install 'segtrain[{name}]'); the run goes on without it" in text_of(tmp_path)


def test_a_config_names_only_the_writers_of_those_files() -> None:
    with pytest.raises(UserError, match=r"there is no module segtrain\.logs\.record"):
        segtrain.compose([*SHAPES, "writer.tensorboard._target_=segtrain.logs.record.Rows"])


# With the real libraries


@pytest.fixture
def wandb() -> Any:
    """W&B as in a new process: it reads its environment once."""
    found = pytest.importorskip("wandb", reason="needs segtrain[wandb]")
    found.teardown()
    return found


@pytest.mark.slow
def test_wandb_goes_on_offline_with_each_number_once(
    tmp_path: Path, clean: pytest.MonkeyPatch, wandb: Any
) -> None:
    clean.setenv("WANDB_MODE", "offline")
    written(tmp_path, WandB(tmp_path, 0), 0, 5)
    rewind(tmp_path, 3)
    written(tmp_path, WandB(tmp_path, 3, project="mine", name="seen"), 3, 9)
    assert of_lines(wandb_numbers(tmp_path)) == lines(tmp_path)
    _, file = wandb_files(tmp_path)
    (run,) = [each.run for each in wandb_records(file) if each.WhichOneof("record_type") == "run"]
    name = record.record_name(tmp_path)
    assert (run.run_id, run.project, run.display_name) == (name, "mine", "seen")
    assert (run.host, run.git.remote_url, run.job_type) == ("", "", "")
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config.pop("_wandb") is not None
    assert config == SETTINGS
    pictures = [path.name for path in (tmp_path / "wandb").rglob("*.png")]
    assert sorted(name.rsplit("_", 1)[0] for name in pictures) == ["a_b_3", "a_b_6", "a_b_9"]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def rows_of(server: Server, name: str) -> list[tuple[str, int, float]]:
    """The lines of metrics.jsonl that a server holds of a run."""
    rows = [(row["_step"], row) for row in server.history(name)]
    return of_lines([(key, step, value) for step, row in rows for key, value in row.items()])


@pytest.mark.slow
def test_wandb_goes_on_online_with_each_number_once_and_tells_nothing_of_the_machine(
    tmp_path: Path, clean: pytest.MonkeyPatch, wandb: Any
) -> None:
    folder = tmp_path / "within" / "run"
    folder.mkdir(parents=True)
    with serving() as server:
        clean.setenv("WANDB_BASE_URL", server.url)
        clean.setenv("WANDB_API_KEY", KEY)
        written(folder, WandB(folder, 0), 0, 5)
        name = record.record_name(folder)
        assert [row["_step"] for row in server.history(name)] == [1, 2, 3, 4]
        rewind(folder, 3)
        written(folder, WandB(folder, 3), 3, 9)
        assert rows_of(server, name) == lines(folder)
        told = b"\n".join(server.requests)
    assert text_of(folder).count(f"track  W&B: {server.url}/me/segtrain/runs/{name}") == 2
    assert KEY not in text_of(folder)
    strange = (socket.gethostname(), str(tmp_path), str(Path.cwd()), sys.executable, "git@", KEY)
    assert [word for word in strange if len(word) > 3 and word.encode() in told] == []


@pytest.mark.slow
def test_a_wandb_server_that_goes_away_is_one_warning_and_no_long_wait(
    tmp_path: Path, clean: pytest.MonkeyPatch, wandb: Any
) -> None:
    clean.setattr(wandb_writer, "SECONDS_TO_END", 2)
    with serving() as server:
        clean.setenv("WANDB_BASE_URL", server.url)
        clean.setenv("WANDB_API_KEY", KEY)
        log = RunLog(tmp_path, 9, 0, 2, writers=[WandB(tmp_path, 0)], progress=False)
        log.open_records(SETTINGS)
        log.train(1, {"loss": 1.0})
    for step in range(2, 10):
        log.train(step, {"loss": 1.0})
    log.complete({})
    begun = time.monotonic()
    log.close()
    assert time.monotonic() - begun < 30
    assert text_of(tmp_path).count("warn") == 1
    wandb.teardown()
    (file,) = (tmp_path / "wandb").glob("run-*/*.wandb")
    assert of_lines(wandb_numbers(tmp_path, [file])) == lines(tmp_path)


@pytest.mark.slow
def test_wandb_sync_joins_the_folders_of_all_starts_whenever_it_is_called(
    tmp_path: Path, clean: pytest.MonkeyPatch, wandb: Any
) -> None:
    clean.setenv("WANDB_MODE", "offline")
    with serving() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        environment["WANDB_MODE"] = "online"

        def sync() -> None:
            places = sorted((tmp_path / "wandb").glob("offline*"))
            done = [place for place in places if not list(place.glob("*.synced"))]
            command = [sys.executable, "-m", "wandb", "sync", *map(str, done)]
            # It leaves its own log where it is called.
            subprocess.run(
                command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60
            )

        written(tmp_path, WandB(tmp_path, 0), 0, 4)
        sync()
        for start, end in ((3, 5), (3, 7), (6, 9)):
            rewind(tmp_path, start)
            time.sleep(1.1)  # their folders bear the second in their names
            written(tmp_path, WandB(tmp_path, start), start, end)
        sync()
        assert rows_of(server, record.record_name(tmp_path)) == lines(tmp_path)


@pytest.mark.slow
def test_mlflow_goes_on_in_a_folder_with_each_number_once(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    store = tmp_path / "shared"
    run = tmp_path / "run"
    run.mkdir()
    written(run, MLflow(run, 0, store=store), 0, 5)
    rewind(run, 3)
    written(run, MLflow(run, 3, store=store), 3, 9)
    told = [(name.replace(", ", "_2c_ "), step, value) for name, step, value in lines(run)]
    assert of_lines(mlflow_numbers(run, store)) == sorted(told)
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("segtrain")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.data.params == {key: str(value) for key, value in SETTINGS.items()}
    assert (only.info.status, only.info.run_name) == ("FINISHED", f"{tmp_path.name}/run")
    pictures = [path.name.split("+")[:3] for path in store.rglob("*.png")]
    assert sorted(pictures) == [["a~b", "step", "3"], ["a~b", "step", "6"], ["a~b", "step", "9"]]
    assert not (run / "mlflow").exists()


@pytest.mark.slow
def test_what_a_resume_changes_becomes_a_tag_in_mlflow(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    written(tmp_path, MLflow(tmp_path, 0), 0, 3)
    changed = MLflow(tmp_path, 3)
    changed.begin({**SETTINGS, "optimizer.lr": 0.01, "train.new": 5})
    changed.close()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("segtrain")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.data.params["optimizer.lr"] == "0.1"
    assert only.data.params["train.new"] == "5"
    assert only.data.tags["optimizer.lr from step 3"] == "0.01"
    assert only.info.status == "KILLED"


@pytest.mark.slow
def test_a_moved_run_goes_on_in_mlflow_and_writes_nothing_where_it_lay(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    old = tmp_path / "old"
    old.mkdir()
    written(old, MLflow(old, 0), 0, 4)
    moved = tmp_path / "moved"
    shutil.move(old, moved)
    written(moved, MLflow(moved, 4), 4, 9)
    told = [(name.replace(", ", "_2c_ "), step, value) for name, step, value in lines(moved)]
    assert of_lines(mlflow_numbers(moved)) == sorted(told)
    assert not old.exists()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes every call and answers none."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    held: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                held.append(listening.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for each in held:
        each.close()
    thread.join(10)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["nobody there", "silent", "no key"])
def test_wandb_goes_offline_with_one_warning_where_it_gets_no_answer(
    tmp_path: Path, clean: pytest.MonkeyPatch, wandb: Any, silent_server: str, server: str
) -> None:
    clean.setenv("WANDB_BASE_URL", silent_server if server == "silent" else "http://127.0.0.1:9")
    if server != "no key":
        clean.setenv("WANDB_API_KEY", KEY)
    clean.setattr(wandb_writer, "SECONDS_TO_BEGIN", 2)
    begun = time.monotonic()
    written(tmp_path, WandB(tmp_path, 0), 0, 9)
    assert time.monotonic() - begun < 60
    wandb.teardown()
    assert text_of(tmp_path).count("warn") == 1
    assert "the record is offline, upload it by: wandb sync" in text_of(tmp_path)
    assert ("no API key" in text_of(tmp_path)) == (server == "no key")
    assert KEY not in text_of(tmp_path)
    assert of_lines(wandb_numbers(tmp_path)) == lines(tmp_path)


@pytest.mark.slow
def test_a_wandb_whose_process_is_gone_is_left_out_with_one_warning(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs segtrain[wandb]")
    clean.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    code = (
        "import os, signal, subprocess, sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = ['tests', 'tests/logs']\n"
        "from test_trackers import RunLog, SETTINGS, WandB\n"
        "folder = Path(sys.argv[1])\n"
        "folder.mkdir()\n"
        "log = RunLog(folder, 9, 0, 2, writers=[WandB(folder, 0)], progress=False)\n"
        "log.open_records(SETTINGS)\n"
        "log.train(1, {'loss': 1.0})\n"
        "found = subprocess.run(['pgrep', '-P', str(os.getpid()), 'wandb-core'],\n"
        "    capture_output=True, text=True).stdout.split()\n"
        "os.kill(int(found[0]), signal.SIGKILL)\n"
        "for step in range(2, 9):\n"
        "    log.train(step, {'loss': 1.0})\n"
        "log.close()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert text_of(folder).count("warn") == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_an_mlflow_server_that_is_away_is_said_once_and_asked_again(
    tmp_path: Path, clean: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    clean.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "segtrain"):
        begun = time.monotonic()
        written(tmp_path, MLflow(tmp_path, 0), 0, 9)
        assert time.monotonic() - begun < 60
    warnings = [each.getMessage() for each in caplog.records if each.name == "segtrain"]
    assert len(warnings) == 1
    assert "MLflow: API request to http://127.0.0.1:9/" in warnings[0]
    assert "secret" not in warnings[0]
    assert len(lines(tmp_path)) > 0


@pytest.mark.slow
def test_mlflow_gets_what_it_missed_once_it_can_take_it_and_nothing_twice(
    tmp_path: Path, clean: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    run = tmp_path / "run"
    run.mkdir()
    store = tmp_path / "store"
    writer = MLflow(run, 0, store=store)
    log = RunLog(run, 9, 0, 2, writers=[writer], progress=False)
    log.open_records(SETTINGS)
    aside = tmp_path / "aside"
    for step in range(1, 10):
        log.train(step, {"loss": 1 / step})
        if step == 4:  # a disk that goes and comes back
            store.rename(aside)
            store.write_text("no folder")
        if step == 7:
            store.unlink()
            aside.rename(store)
            writer._again = 0.0
    log.close()
    warnings = [each for each in caplog.records if each.name == "segtrain"]
    assert len(warnings) == 1
    assert "is sent once it answers" in warnings[0].getMessage()
    assert of_lines(mlflow_numbers(run, store)) == lines(run)


@pytest.mark.slow
def test_a_run_tells_both_its_settings_but_no_value_of_the_environment(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs segtrain[wandb]")
    pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
    wandb.teardown()  # it reads its environment once
    clean.setenv("WANDB_MODE", "offline")
    clean.setenv("MY_SECRET", str(tmp_path / "opensesame"))
    first = typed("segtrain", *SHAPES, f"hydra.run.dir={tmp_path / 'opensesame'}")
    assert first.code == 0, first
    run = tmp_path / "run"
    words = [*SHAPES, "writer=[wandb,mlflow]", "train.init=${oc.env:MY_SECRET}"]
    ended = typed("segtrain", *words, f"hydra.run.dir={run}")
    assert ended.code == 0, ended
    wandb.teardown()
    (file,) = wandb_files(run)
    (told,) = [each.run for each in wandb_records(file) if each.WhichOneof("record_type") == "run"]
    config = {each.key: json.loads(each.value_json) for each in told.config.update}
    assert config["train.init"] == "${oc.env:MY_SECRET}"
    assert config["train.steps"] == 2
    assert "opensesame" not in str(told)
    assert of_lines(wandb_numbers(run)) == of_lines(mlflow_numbers(run)) == lines(run)
