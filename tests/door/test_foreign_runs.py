"""A run folder of a stranger is read with care: no link is followed, no stored place is obeyed.

`segtrain resume=`, `segeval checkpoint=`, `segpredict checkpoint=` and `segreport` on folders that
somebody prepared, and new runs in folders where something lies already.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hostile_files import FILES, as_key, nested, seal
from PIL import Image
from places import SECRET, TINY, Places, assert_one_line, shown
from rows import Tally, amount
from warm import Ended, Warm

from segtrain.checkpoints.manifest import MANIFEST, encode

pytestmark = pytest.mark.slow

TWO_STEPS = (*TINY, "train.steps=2", "train.eval_every=2", "train.save_every=1", "log.images=1")
STEP = "checkpoints/step_00000001"


def done(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended


@pytest.fixture(scope="module")
def whole(training: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two steps with all that a run and its measurement leave."""
    base = tmp_path_factory.mktemp("stranger")
    done(training("segtrain", *TWO_STEPS, "writer=[tensorboard]", "hydra.run.dir=run", cwd=base))
    done(training("segeval", "checkpoint=run", "log.progress=false", cwd=base))
    return base / "run"


@pytest.fixture
def foreign(whole: Path, places: Places) -> Path:
    """The run as it was when it was stopped after its first step."""
    run = shutil.copytree(whole, places.stranger / "run")
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    return run


@pytest.fixture
def complete(whole: Path, places: Places) -> Path:
    """The complete run."""
    return shutil.copytree(whole, places.stranger / "run")


@pytest.fixture
def here(training: Warm, places: Places) -> Iterator[Callable[..., Ended]]:
    """Runs a command in the user's folder."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(places.work / "photo.png")

    def run(name: str, *arguments: str) -> Ended:
        return training(name, *arguments, cwd=places.work, env=places.env)

    return run


def link(run: Path, entry: str, places: Places) -> None:
    """Put what `entry` of the run is into the victim's folder, and a link in its place."""
    place = run / entry
    target = places.victim / place.name
    if place.exists():
        target = target.with_name(f"moved-{place.name}")
        shutil.move(place, target)
    elif place.suffix:
        target.write_text("precious\n")
    else:
        target.mkdir()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


RESUMED = (
    "config.yaml",
    ".lock",
    "train.log",
    "metrics.jsonl",
    "timing.jsonl",
    "summary.json",
    "checkpoints",
    STEP,
    f"{STEP}/manifest.json",
    f"{STEP}/model.pt",
    f"{STEP}/optimizer.pt",
    "samples",
    "tensorboard",
)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("entry", RESUMED)
def test_a_resume_follows_no_link(
    here: Callable[..., Ended], foreign: Path, places: Places, entry: str, processes: int
) -> None:
    link(foreign, entry, places)
    before = places.look(without=["stranger/run/.lock"])
    ended = here("segtrain", f"resume={foreign}", f"train.processes={processes}")
    assert_one_line(ended, "segtrain", 2, entry.split("/")[0])
    assert places.look(without=["stranger/run/.lock"]) == before


@pytest.mark.parametrize("entry", ["samples/new.png", "train.log", "metrics.jsonl"])
def test_a_resume_follows_no_link_to_what_does_not_exist_yet(
    here: Callable[..., Ended], foreign: Path, places: Places, entry: str
) -> None:
    if entry == "samples/new.png":
        entry = str(next((foreign / "samples").glob("*.png")).relative_to(foreign))
    (foreign / entry).unlink()
    (foreign / entry).symlink_to(places.victim / "made")
    ended = here("segtrain", f"resume={foreign}")
    assert_one_line(ended, "segtrain", 2, entry.split("/")[0])
    assert not (places.victim / "made").exists()


PIPES = ("config.yaml", "train.log", "metrics.jsonl", "timing.jsonl", "summary.json", ".lock")


@pytest.mark.parametrize("entry", PIPES)
def test_a_pipe_in_a_run_folder_keeps_no_command_waiting(
    training: Warm, foreign: Path, places: Places, entry: str
) -> None:
    (foreign / entry).unlink(missing_ok=True)
    os.mkfifo(foreign / entry)
    before = places.look()

    def run(name: str, *arguments: str) -> Ended:
        return training(name, *arguments, cwd=places.work, env=places.env, timeout=15)

    assert_one_line(run("segtrain", f"resume={foreign}"), "segtrain", 2, entry)
    assert places.look() == before
    reported = run("segreport", str(foreign), "output=out")
    assert reported.code in (0, 2), reported
    assert "Traceback" not in reported.err


TEMPORARY = (
    ".tmp-config.yaml",
    ".tmp-summary.json",
    ".tmp-metrics.jsonl",
    ".tmp-timing.jsonl",
    ".tmp-train.log",
    "checkpoints/.tmp-step_00000002",
)


@pytest.mark.parametrize("entry", TEMPORARY)
def test_a_temporary_name_that_is_a_link_is_never_written_through(
    here: Callable[..., Ended], foreign: Path, places: Places, entry: str
) -> None:
    """The resume is refused, or takes a file of its own."""
    link(foreign, entry, places)
    before = victim(places)
    ended = here("segtrain", f"resume={foreign}")
    assert "Traceback" not in ended.err
    assert ended.code in (0, 2), ended
    assert victim(places) == before


MEASURED = ("checkpoints", STEP, f"{STEP}/model.pt", f"{STEP}/manifest.json", "eval", "eval/*")


@pytest.mark.parametrize("entry", [*MEASURED, "eval/*/metrics.json", "eval/*/worst"])
def test_a_measurement_follows_no_link(
    here: Callable[..., Ended], foreign: Path, places: Places, entry: str
) -> None:
    entry = str(next(foreign.glob(entry)).relative_to(foreign))
    link(foreign, entry, places)
    before = places.look()
    ended = here("segeval", f"checkpoint={foreign}", "log.progress=false")
    assert_one_line(ended, "segeval", 2, entry.split("/")[0])
    assert places.look() == before


@pytest.mark.parametrize("entry", ["checkpoints", STEP, f"{STEP}/model.pt"])
def test_a_prediction_follows_no_link(
    here: Callable[..., Ended], foreign: Path, places: Places, entry: str
) -> None:
    link(foreign, entry, places)
    before = places.look()
    asked = (f"checkpoint={foreign}", "input=photo.png", "output=out", "log.progress=false")
    ended = here("segpredict", *asked)
    assert_one_line(ended, "segpredict", 2, entry.split("/")[0])
    assert places.look() == before


@pytest.mark.parametrize("entry", ["report.html", "report.md", "report.csv"])
def test_a_report_is_not_written_through_a_link(
    here: Callable[..., Ended], complete: Path, places: Places, entry: str
) -> None:
    (complete / entry).symlink_to(places.victim / "precious.txt")
    before = places.look()
    ended = here("segreport", str(complete))
    assert_one_line(ended, "segreport", 2, entry)
    assert places.look() == before


@pytest.mark.parametrize("entry", ["config.yaml", "summary.json", "metrics.jsonl"])
def test_a_report_does_not_show_what_a_link_points_at(
    here: Callable[..., Ended], complete: Path, places: Places, entry: str
) -> None:
    """It names the link, or is refused for it."""
    secret = places.victim / "secret"
    secret.write_text(
        {
            "config.yaml": f"train:\n  monitor: {SECRET}\n",
            "summary.json": json.dumps({"status": SECRET, "metric": SECRET}),
            "metrics.jsonl": json.dumps({"step": 1, "phase": "val", f"IoU/{SECRET}": 0.5}) + "\n",
        }[entry]
    )
    (complete / entry).unlink()
    (complete / entry).symlink_to(secret)
    before = victim(places)
    ended = here("segreport", str(complete), "output=out")
    assert ended.code in (0, 2), ended
    written = "".join(p.read_text() for p in (places.work / "out").glob("report.*"))
    assert SECRET not in ended.out + ended.err + written
    assert victim(places) == before


def test_a_report_prints_no_escape_of_a_stranger(
    here: Callable[..., Ended], complete: Path
) -> None:
    """A terminal obeys them: they may rename it, or type for the user."""
    escape = "\x1b]0;owned\x07"
    summary = json.loads((complete / "summary.json").read_text())
    summary |= {"status": escape, "metric": f"m{escape}"}
    (complete / "summary.json").write_text(json.dumps(summary))
    (complete / "config.yaml").write_text(json.dumps({"train": {"monitor": escape}}))
    shutil.copytree(complete, complete.parent / "twin")
    (complete.parent / "twin" / "config.yaml").write_text(
        json.dumps({"train": {"monitor": f"x{escape}"}, escape: 1})
    )
    shutil.copytree(complete, complete.parent / f"named{escape}")
    ended = done(here("segreport", str(complete.parent), "output=out"))
    assert "\x1b" not in ended.out + ended.err
    assert "\x07" not in ended.out + ended.err


def victim(places: Places) -> dict[str, str]:
    return {name: what for name, what in places.look().items() if name.startswith("victim")}


def test_the_path_to_a_run_may_pass_through_links(
    here: Callable[..., Ended], foreign: Path, places: Places
) -> None:
    (places.work / "short").symlink_to(foreign.parent)
    done(here("segtrain", "resume=short/run"))
    assert (foreign / "summary.json").is_file()
    (places.work / "run").symlink_to(foreign)
    done(here("segeval", "checkpoint=run", "log.progress=false"))


# ---------------------------------------------------------------------- what is stored in it


def reseal(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the stored config wherever it stands, as a stranger can."""
    for path in (run / "config.yaml", run / ".hydra" / "config.yaml"):
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    for path in run.glob(f"checkpoints/*/{MANIFEST}"):
        body = json.loads(path.read_text())
        del body["seal"]
        change(body["meta"]["config"])
        path.write_bytes(encode(body))


@pytest.mark.parametrize("key", ["output", "submission"])
@pytest.mark.parametrize("command", ["segeval", "segpredict", "segtrain"])
def test_a_stored_place_is_not_obeyed(
    here: Callable[..., Ended], foreign: Path, places: Places, command: str, key: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["eval"][key] = str(places.victim / "evil")

    reseal(foreign, change)
    before = victim(places)
    asked = {
        "segeval": ("segeval", f"checkpoint={foreign}", "log.progress=false"),
        "segpredict": (
            "segpredict",
            f"checkpoint={foreign}",
            "input=photo.png",
            "output=out",
            "log.progress=false",
        ),
        "segtrain": ("segtrain", f"resume={foreign}"),
    }[command]
    done(here(*asked))
    assert victim(places) == before
    if command == "segeval":
        assert list(foreign.glob("eval/*/metrics.json"))


@pytest.mark.parametrize("key", ["train.monitor", "train.init", "eval.output", "model.norm"])
@pytest.mark.parametrize("command", ["segeval", "segpredict", "segtrain", "segreport"])
def test_a_stored_question_for_the_environment_shows_nothing(
    here: Callable[..., Ended], foreign: Path, places: Places, command: str, key: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        group, _, name = key.partition(".")
        config[group][name] = "${oc.env:SECRET}"

    reseal(foreign, change)
    asked = {
        "segeval": ("segeval", f"checkpoint={foreign}", "log.progress=false"),
        "segpredict": (
            "segpredict",
            f"checkpoint={foreign}",
            "input=photo.png",
            "output=out",
            "log.progress=false",
        ),
        "segtrain": ("segtrain", f"resume={foreign}"),
        "segreport": ("segreport", str(foreign)),
    }[command]
    ended = here(*asked)
    assert "Traceback" not in ended.err
    assert ended.code in (0, 2), ended
    assert SECRET not in shown(ended, foreign) + shown(ended, places.work)


@pytest.mark.parametrize("name", ["car\x1b[31m", "car\nbus", "car\x00", "\x1b]0;owned\x07"])
@pytest.mark.parametrize("command", ["segeval", "segpredict"])
def test_a_stored_class_name_that_is_no_text_is_refused(
    here: Callable[..., Ended], foreign: Path, places: Places, command: str, name: str
) -> None:
    for path in foreign.glob(f"checkpoints/*/{MANIFEST}"):
        body = json.loads(path.read_text())
        del body["seal"]
        text = json.dumps(body["meta"]).replace('"circle"', json.dumps(name))
        assert text != json.dumps(body["meta"])
        body["meta"] = json.loads(text)
        path.write_bytes(encode(body))
    before = places.look()
    asked = [f"checkpoint={foreign}", "log.progress=false"]
    if command == "segpredict":
        asked += ["input=photo.png", "output=out"]
    ended = here(command, *asked)
    assert_one_line(ended, command, 2, "class")
    assert places.look() == before


STORED_BOMBS = {
    "laughs": "writer:\n  a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"  a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "interpolations": "writer:\n  a0: xxxxxxxxxx\n"
    + "".join(f"  a{i}: {f'${{writer.a{i - 1}}}' * 10}\n" for i in range(1, 10)),
    "tag": "model: !!python/object/apply:os.mkdir ['@CANARY@']\n",
    "depth": "writer: " + "[" * 20000 + "]" * 20000,
    "target": "model: {_target_: os.mkdir, path: '@CANARY@'}\n",
    "hydra": "hydra: {job: {env_set: {PYTHONPATH: '@WEAPONS@'}}}\n",
    "resolver": "train: {init: '${oc.decode:${oc.env:SECRET}}'}\n",
    "list": "[1, 2]\n",
    "nothing": "",
}


@pytest.mark.parametrize("bomb", STORED_BOMBS)
def test_a_stored_config_that_is_none_is_refused_at_once(
    here: Callable[..., Ended], foreign: Path, places: Places, bomb: str
) -> None:
    (foreign / "config.yaml").write_text(places.filled(STORED_BOMBS[bomb]))
    before = places.look(without=["stranger/run/.lock"])
    ended = here("segtrain", f"resume={foreign}")
    assert_one_line(ended, "segtrain", 2, "config.yaml")
    assert SECRET not in ended.err
    assert ended.seconds < 1
    assert ended.mebibytes < 1024
    assert places.look(without=["stranger/run/.lock"]) == before
    reported = here("segreport", str(foreign), "output=out")
    assert "Traceback" not in reported.err
    assert reported.code in (0, 2), reported
    assert reported.seconds < 2
    assert not places.canary.exists()


def test_a_config_that_differs_from_the_checkpoint_is_refused_naming_both_values(
    here: Callable[..., Ended], foreign: Path
) -> None:
    config = (foreign / "config.yaml").read_text()
    assert "\n  seed: 0\n" in config
    (foreign / "config.yaml").write_text(config.replace("\n  seed: 0\n", "\n  seed: 12345\n"))
    ended = here("segtrain", f"resume={foreign}")
    assert_one_line(ended, "segtrain", 2, "seed", "12345", "0")


def test_an_environment_variable_in_a_place_reaches_no_file(
    here: Callable[..., Ended], places: Places
) -> None:
    """The user's own run on data whose folder the environment names."""
    data = places.base / SECRET
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
            for name in "ab":
                shape = (32, 32, 3) if kind == "images" else (32, 32)
                values = np.eye(32, dtype=np.uint8)
                picture = np.broadcast_to(values[..., None], shape) if len(shape) == 3 else values
                Image.fromarray(np.ascontiguousarray(picture)).save(
                    data / kind / split / f"{name}.png"
                )
    labels = "dataset.labels=[{id: 0, name: ground}, {id: 1, name: thing}]"
    rest = [o for o in TINY if not o.startswith("dataset")]
    asked = ["dataset=folder", "dataset.root=${oc.env:BASE}/${oc.env:SECRET}", labels]
    ended = here("segtrain", *asked, "dataset.crop=[32,32]", *rest, "hydra.run.dir=run")
    done(ended)
    measured = done(here("segeval", "checkpoint=run", "log.progress=false"))
    run = places.work / "run"
    assert SECRET not in shown(ended, run) + shown(measured, run)
    assert SECRET not in (run / "config.yaml").read_text()
    assert "oc.env:SECRET" in (run / "config.yaml").read_text()


# ---------------------------------------------------------------------- a folder that is not empty

OURS = ("config.yaml", "train.log", "metrics.jsonl", "timing.jsonl", "summary.json", "checkpoints")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", ["own", "link", "dangling"])
def test_a_new_run_overwrites_nothing_that_has_one_of_our_names(
    here: Callable[..., Ended], places: Places, name: str, kind: str
) -> None:
    place = places.work / "run" / name
    place.parent.mkdir()
    if kind == "dangling":
        place.symlink_to(places.victim / "made")
    elif kind == "link":
        place.symlink_to(places.victim / "precious.txt")
    elif name == "checkpoints":
        place.mkdir()
        (place / "mine.pt").write_text("precious\n")
    else:
        place.write_text("precious: mine\n")
    before = places.look()
    ended = here("segtrain", *TINY, "hydra.run.dir=run")
    assert_one_line(ended, "segtrain", 2, name)
    assert places.look() == before


def test_a_new_run_leaves_files_of_other_names_alone(
    here: Callable[..., Ended], places: Places
) -> None:
    (places.work / "run").mkdir()
    (places.work / "run" / "notes.txt").write_text("mine\n")
    done(here("segtrain", *TINY, "hydra.run.dir=run"))
    assert (places.work / "run" / "notes.txt").read_text() == "mine\n"
    assert (places.work / "run" / "summary.json").is_file()


@pytest.mark.row("R6")
@pytest.mark.parametrize(
    "make", amount(FILES[:1], FILES[:2], FILES), ids=lambda make: make.__name__
)
def test_a_hostile_file_ends_a_command_in_one_line_soon_and_in_little_memory(
    training: Warm, complete: Path, places: Places, make: Callable[[Path, Path], None], tally: Tally
) -> None:
    """As a file by itself, and as the model inside a run whose manifest is right about it."""
    for step in sorted((complete / "checkpoints").iterdir()):
        body = json.loads((step / MANIFEST).read_text())
        make(step / "model.pt", places.canary)
        seal(step, step=body["step"], meta=body["meta"])
    bare = places.stranger / "weights.safetensors"
    make(bare, places.canary)
    before = places.look()
    words = [
        ("segtrain", *TINY, f"train.init={complete}"),
        ("segeval", f"checkpoint={complete}", "log.progress=false"),
        ("segpredict", f"checkpoint={complete}", f"input={places.victim}", "output=out"),
        ("segeval", f"checkpoint={bare}"),
    ]
    if make not in (nested, as_key):  # beside tensors: what is none of them is left out
        words.append(("segtrain", *TINY, f"train.init={bare}"))
    for name, *arguments in words:
        ended = training(name, *arguments, cwd=places.work, env=places.env)
        assert_one_line(ended, name, 2)
        assert ended.seconds < 2, ended
        assert ended.mebibytes < 1024, ended
        assert places.look() == before
        tally()
