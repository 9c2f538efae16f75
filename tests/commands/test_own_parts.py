"""Parts of a researcher's own package.

The person who types says that it is trusted, and nobody else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import own_package
import pytest
from commandline import done, numbers, refused

import segtrain
from segtrain.config import trust
from segtrain.errors import UserError

TRUST = ["--trust", "mylab"]
RUN = [*own_package.CHOICES, *own_package.SMALL]


@pytest.fixture
def mylab(tmp_path: Path) -> Iterator[Path]:
    """The installed package, on `sys.path` of this process only."""
    with own_package.importable(own_package.installed(tmp_path / "site")) as folder:
        yield folder


def test_six_parts_of_a_package_of_60_lines_train_resume_and_are_measured(
    mylab: Path, tmp_path: Path
) -> None:
    assert own_package.lines() <= 60
    run = tmp_path / "run"
    refused(2, ["model=mynet", "no such model"], "segtrain", *RUN)
    refused(2, ["--trust mylab"], "segtrain", "model._target_=mylab.parts.MyNet")
    done("segtrain", *TRUST, *RUN, f"hydra.run.dir={run}")
    assert (run / "lines.txt").read_text().splitlines()[0].startswith("1 train/loss")
    record = json.loads((run / "summary.json").read_text())["final"]
    assert record["error"] == pytest.approx(1 - record["pixAcc"])

    # What is stored names the parts, and trusts nobody.
    (run / "summary.json").unlink()
    for command in (
        ("segtrain", f"resume={run}"),
        ("segeval", f"checkpoint={run}"),
        ("segpredict", f"checkpoint={run}", f"input={run}/samples", f"output={tmp_path / 'maps'}"),
    ):
        refused(2, ["_target_", "mylab.parts", "not trusted", "add --trust mylab"], *command)
    with pytest.raises(UserError, match=r"--trust mylab \(in Python: trust=\['mylab'\]\)"):
        segtrain.load(run, device="cpu")

    done("segtrain", *TRUST, f"resume={run}")
    done("segeval", *TRUST, f"checkpoint={run}", "eval.worst=0")
    (measured,) = (run / "eval").iterdir()
    assert numbers(measured)["error"] == pytest.approx(record["error"])
    done(
        "segpredict",
        *TRUST,
        f"checkpoint={run}",
        f"input={run}/samples",
        f"output={tmp_path / 'maps'}",
    )
    assert "circle" in done("segdata", "stats", *TRUST, *RUN)
    loaded = segtrain.load(run, device="cpu", trust=["mylab"])
    assert type(loaded.network).__module__ == "mylab.parts"
    assert segtrain.evaluate(loaded, "bright", trust=["mylab"])["mIoU"] >= 0
    assert trust.folders() == {}  # for the call alone


def test_their_groups_are_listed_and_suggested(mylab: Path) -> None:
    assert " mynet," in done("segtrain", *TRUST, "--help")
    assert " mynet," not in done("segtrain", "--help")
    refused(2, ["Did you mean `mynet`?"], "segtrain", *TRUST, "model=mynett")
    refused(2, ["model.widht", "Did you mean"], "segtrain", *TRUST, "model=mynet", "model.widht=3")
    refused(2, ["model.width", "int"], "segtrain", *TRUST, "model=mynet", "model.width=wide")


def test_the_environment_and_python_name_packages_too(
    mylab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = segtrain.create_model("mynet", 3, trust=["mylab"], width=4)
    assert model.get_parameter("head.weight").shape == (3, 4, 1, 1)
    monkeypatch.setenv("SEGTRAIN_TRUST", "mylab")
    assert segtrain.compose(["model=mynet"]).model["_target_"] == "mylab.parts.MyNet"
    with trust.trusting([]):
        assert trust.flags() == TRUST  # what launched processes get, whatever their environment
        assert trust.command("resume=a b") == "segtrain --trust mylab 'resume=a b'"


def test_a_config_with_the_name_of_one_of_ours_is_named(mylab: Path) -> None:
    path = mylab / "mylab" / "conf" / "model" / "unet.yaml"
    path.write_text("_target_: mylab.parts.MyNet\n")
    refused(2, [str(path), "model=unet of its own", "another name"], "segtrain", *TRUST, *RUN)


def test_a_search_path_of_the_users_own_is_kept_beside_theirs(mylab: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "model").mkdir(parents=True)
    (tmp_path / "more" / "model" / "wide.yaml").write_text("defaults: [mynet]\nwidth: 32\n")
    more = f"hydra.searchpath=['file://{tmp_path / 'more'}']"
    run = segtrain.compose(["model=wide", more], trust=["mylab"])
    assert run.model == {"_target_": "mylab.parts.MyNet", "width": 32}


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "os": "belongs to Python",
        "importlib": "belongs to Python",
        "segtrain": "need no trust",
        "torch": "segtrain itself stands on it",
        "yaml": "segtrain itself stands on it",
        "hydra": "segtrain itself stands on it",
        "numpy": "segtrain itself stands on it",
        "pip": "segtrain itself stands on it",
        "../mylab": "not the name of a package",
        "my lab": "not the name of a package",
        "mylab.parts": "not the name of a package",
        "mylab/parts": "not the name of a package",
        "__main__": "not the name of a package",
        "": "not the name of a package",
        "m\u0443lab": "not the name of a package",  # CYRILLIC SMALL LETTER U
        "model=mynet": "not the name of a package",
        "nobodys": "no package of this name is installed",
        "typing_extensions": "single file",
    }.items(),
)
def test_a_name_that_is_no_package_of_parts_is_refused(name: str, words: str) -> None:
    refused(2, ["--trust", words], "segtrain", "--trust", name, "model=fcn")


def test_the_flag_alone_and_as_a_setting_are_refused() -> None:
    refused(2, ["--trust PACKAGE"], "segtrain", "trust=mylab")
    with pytest.raises(UserError, match="--trust PACKAGE"):
        trust.split_flags(["model=fcn", "--trust"])
    assert trust.split_flags(["a=1", "--trust", "x,y", "--trust=z"]) == (["x", "y", "z"], ["a=1"])


@pytest.mark.parametrize("below", ["", "src"])
def test_a_package_of_the_working_folder_must_be_installed(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = own_package.write(tmp_path / "project")
    if below:
        (project / below).mkdir()
        shutil.move(project / "mylab", project / below / "mylab")
    monkeypatch.chdir(project)
    words = ["--trust mylab", str(project / below / "mylab"), "is not installed"]
    refused(2, [*words, "pip install -e ."], "segtrain", *TRUST, "model=mynet")
    monkeypatch.syspath_prepend(project / below)  # as `python -m segtrain` does
    refused(2, [*words, "pip install -e ."], "segtrain", *TRUST, "model=mynet")


def test_an_editable_installation_is_one_although_its_folder_is_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = own_package.write(tmp_path / "my project")
    url = json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}})
    site = own_package.registered(tmp_path / "site", {"RECORD": "", "direct_url.json": url})
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(project)  # as the .pth file of an editable installation does
    assert trust.package_folder("mylab") == project / "mylab"
    assert segtrain.compose(["model=mynet"], trust=["mylab"]).model["width"] == 8


def test_a_folder_that_shadows_the_installed_package_is_refused(
    mylab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = own_package.write(tmp_path / "stranger")
    monkeypatch.syspath_prepend(stranger)
    refused(2, [str(stranger / "mylab"), "is not installed"], "segtrain", *TRUST, "model=mynet")


def test_an_argument_without_annotation_and_source_that_is_no_python_are_named(mylab: Path) -> None:
    parts = mylab / "mylab" / "parts.py"
    source = parts.read_text()
    parts.write_text(source.replace("width: int = 8", "width=8"))
    refused(2, ["model.width", "annotate `width`"], "segtrain", *TRUST, *RUN, "model.width=3")
    parts.write_text(source + "\ndef broken(:\n")
    refused(2, [f"{parts}:", "is not Python"], "segtrain", *TRUST, *RUN)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_installed_package_survives_a_kill_a_sweep_and_every_command(
    processes: int, tmp_path: Path
) -> None:
    project = own_package.write(tmp_path / "project")
    site = own_package.pip_installed(project, tmp_path / "site")
    root = Path(segtrain.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{root}"}

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "segtrain", *arguments]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    several = [f"train.processes={processes}", "log.progress=false"]
    settings = [*TRUST, *RUN, *several]
    folder = tmp_path / "run"
    long = [
        *settings,
        "train.steps=100",
        "train.eval_every=100",
        "train.save_every=5",
        f"hydra.run.dir={folder}",
    ]
    training = subprocess.Popen(
        [sys.executable, "-m", "segtrain", *long],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert not (folder / "summary.json").exists()

    told = run(f"resume={folder}", code=2).stderr
    assert told.count("\n") == 1
    assert "--trust mylab" in told
    run(*TRUST, f"resume={folder}")
    assert json.loads((folder / "summary.json").read_text())["status"] == "complete"

    run("-m", *settings, "model.width=4,6", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2
    shared = [f"eval.processes={processes}", "log.progress=false"]
    assert "--trust mylab" in run("segeval", f"checkpoint={folder}", *shared, code=2).stderr
    run("segeval", *TRUST, f"checkpoint={folder}", *shared)
    into = [f"input={folder / 'samples'}", f"output={tmp_path / 'maps'}"]
    run("segpredict", *TRUST, f"checkpoint={folder}", *into)
    run("segdata", "verify", *TRUST, "dataset=bright", "dataset.train=8")
    assert "MyNet" not in run("segreport", *TRUST, str(tmp_path / "sweep")).stderr
