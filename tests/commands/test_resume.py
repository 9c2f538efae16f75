"""What a run folder says of its settings and its places, with real runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from commandline import done, refused, trained, typed
from test_mistakes import make_data

from segtrain.checkpoints import reading
from segtrain.commands.report import report
from segtrain.config import places
from segtrain.engine import state as engine_state
from segtrain.engine.evidence import MAY_CHANGE, may_change
from segtrain.errors import UserError

SMALL = [
    "train.steps=4",
    "train.batch_size=4",
    "train.eval_every=2",
    "train.precision=fp32",
    "train.threads=1",
    "train.verify=false",
    "dataset.crop=[32,32]",
    "writer=[]",
    "log.images=1",
    "train.device=cpu",
]
PAGE = Path(__file__).parents[2] / "docs" / "resume.md"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and in `run` a run of it that stopped after two of four steps."""
    place = tmp_path_factory.mktemp("stopped")
    make_data(place / "data")
    before = Path.cwd()
    os.chdir(place)
    try:
        trained(Path("run"), "dataset=folder", "dataset.root=data", *SMALL)
    finally:
        os.chdir(before)
    (place / "run" / "summary.json").unlink()
    shutil.rmtree(place / "run" / "checkpoints" / "step_00000004")
    return place


@pytest.fixture
def place(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same again, free to be changed, and the current folder."""
    copy = shutil.copytree(stopped, tmp_path / "place")
    record = copy / "run" / ".hydra" / "hydra.yaml"
    record.write_text(record.read_text().replace(str(stopped), str(copy)))
    monkeypatch.chdir(copy)
    return copy


def saved(run: Path) -> dict:
    """The settings that the newest checkpoint holds."""
    newest = reading.latest(run / "checkpoints")
    assert newest is not None
    return dict(newest.meta["config"])


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# ---------------------------------------------------------------------- quick ones


def test_the_table_of_what_may_change_names_what_the_code_knows() -> None:
    rows = re.findall(r"^\| `([^|]+)` \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    told = dict(rows)
    assert {key: told.get(key) for key in MAY_CHANGE} == MAY_CHANGE
    words = set(re.findall(r"`(\w+)`", told["dataset.*"]))
    assert words == {*places.FROM_WORKING_FOLDER, *places.BELOW_ROOT}
    assert "`, `".join(places.OF_INFERENCE) in told
    for key in ("dataset.val_images", "dataset.root", "log.every", "inference.partner"):
        assert may_change(key), key
    for key in ("dataset.steps", "dataset.submission", "train.steps", "model.weights", "eval.flip"):
        assert not may_change(key), key


@pytest.mark.parametrize(
    "setting",
    [
        "train.monitor=${oc.env:SECRET}",
        pytest.param("model.backbone=${oc.env:SECRET}", marks=pytest.mark.slow),
    ],
)
def test_a_variable_stands_in_places_only(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    ended = typed("segtrain", setting)
    assert ended.code == 2
    assert "${oc.env:SECRET}" in ended.err
    assert "hunter2" not in ended.err + ended.out


# ---------------------------------------------------------------------- real runs


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_goes_on_after_its_data_moved(place: Path, processes: int) -> None:
    (place / "data").rename(place / "moved")
    refused(2, ["data: no such folder", "dataset.root="], "segtrain", "resume=run")
    refused(
        2, ["dataset.split=train", "dataset.root"], "segtrain", "resume=run", "dataset.split=train"
    )
    done("segtrain", "resume=run", "dataset.root=moved", f"train.processes={processes}")
    assert (place / "run" / "summary.json").is_file()
    assert saved(place / "run")["dataset"]["root"] == str(place / "moved")
    assert (
        "changed by this resume: dataset.root from data to" in (place / "run/train.log").read_text()
    )
    assert "root: data\n" in (place / "run" / "config.yaml").read_text()
    (place / "run" / "summary.json").unlink()
    done("segtrain", "resume=run")  # the change was saved
    done("segeval", "checkpoint=run", "eval.worst=0")


@pytest.mark.slow
def test_a_relative_root_means_the_folder_the_run_was_started_from(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = place / "run"
    done("segtrain", f"resume={run}")
    assert saved(run)["dataset"]["root"] == "data"
    done("segeval", f"checkpoint={run}", "eval.worst=0")
    (metrics,) = (run / "eval").glob("*/metrics.json")
    assert json.loads(metrics.read_text())["protocol"]["dataset"]["root"] == "data"
    (run / ".hydra" / "hydra.yaml").unlink()  # the checkpoint knows it, too
    (run / "summary.json").unlink()
    done("segtrain", f"resume={run}")


@pytest.mark.slow
def test_a_config_that_was_changed_is_named_key_by_key(place: Path) -> None:
    run = place / "run"
    edit(run / "config.yaml", "steps: 4", "steps: 9")
    edit(run / "config.yaml", "keep: 2", "keep: 7")
    words = [
        "train.steps is 9, was 4",
        "train.keep is 7, was 2",
        "segtrain resume=run train.keep=7",
    ]
    refused(2, words, "segtrain", "resume=run")
    (run / ".hydra" / "config.yaml").unlink()  # then the checkpoint tells it
    refused(2, ["train.steps is 9, was 4", "step_00000002"], "segtrain", "resume=run")
    edit(run / "config.yaml", "steps: 9", "steps: 4")
    done("segtrain", "resume=run")
    assert saved(run)["train"]["keep"] == 2  # in force is what was saved


@pytest.mark.slow
def test_a_config_changed_while_the_run_trains_is_told_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "run"
    save_step = engine_state.writing.save

    def meddle(folder: Path, step: int, *others: object, **keep: int) -> Path:
        if step == 3:
            edit(run / "config.yaml", "keep: 2", "keep: 7")
        return save_step(folder, step, *others, **keep)  # ty: ignore[invalid-argument-type]

    shutil.rmtree(run)
    monkeypatch.setattr(engine_state.writing, "save", meddle)
    ended = typed(
        "segtrain",
        "dataset=folder",
        "dataset.root=data",
        *SMALL,
        "hydra.run.dir=run",
        "train.save_every=1",
    )
    assert ended.code == 0, ended
    log = (run / "train.log").read_text()
    assert log.count("config.yaml was changed while this run trains") == 1
    assert saved(run)["train"]["keep"] == 2


@pytest.mark.slow
def test_what_a_variable_holds_is_written_nowhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "data").rename(place / "hunter2")
    monkeypatch.setenv("SECRET", str(place / "hunter2"))
    run = trained(place / "mine", "dataset=folder", "dataset.root=${oc.env:SECRET}", *SMALL)
    done("segeval", f"checkpoint={run}", "eval.worst=0")
    (run / "summary.json").unlink()
    done("segtrain", f"resume={run}", "train.keep=3")
    report([run])
    holding = [p for p in run.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert holding == []
    assert saved(run)["dataset"]["root"] == "${oc.env:SECRET}"
    monkeypatch.setenv("SECRET", "/nowhere/hunter3")
    ended = typed("segeval", f"checkpoint={run}")
    assert ended.code == 2
    assert "hunter3" not in ended.err
    assert "${oc.env:SECRET}: no such folder" in ended.err


@pytest.mark.slow
def test_results_predictions_and_reports_replace_only_our_own(place: Path) -> None:
    done("segtrain", "resume=run")
    images = f"input={place / 'data' / 'images' / 'val'}"
    for asked, names in (
        (("segeval", "checkpoint=run", "eval.output="), ("worst/a.png", "table.txt")),
        (("segpredict", "checkpoint=run", images, "output="), ("p0.png", "p1_overlay.png")),
    ):
        *first, last = asked
        for number, name in enumerate(names):
            out = Path(f"{asked[0]}-{number}")
            mine = users(out / name)
            refused(2, [str(out), f"was not written by {asked[0]}"], *first, f"{last}{out}")
            assert [path for path in out.rglob("*") if path.is_file()] == [mine]
            assert mine.read_text() == "mine"
            mine.unlink()
            done(*first, f"{last}{out}")
            done(*first, f"{last}{out}")  # over our own, as often as one likes
    notes = users(Path("segeval-0/worst/notes.txt"))
    done("segeval", "checkpoint=run", "eval.output=segeval-0", "eval.worst=0")
    assert list(notes.parent.iterdir()) == [notes]
    mine = users(Path("reports/report.md"))
    with pytest.raises(UserError, match=r"report\.md: was not written by segreport"):
        report([Path("run")], mine.parent)
    assert list(mine.parent.iterdir()) == [mine]
    mine.unlink()
    report([Path("run")], mine.parent)
    report([Path("run")], mine.parent)


def users(file: Path) -> Path:
    """A file that a user has there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    return file
