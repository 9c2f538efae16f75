"""Tab completion: what may follow on a command line, asked by real shells too."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import own_package
import pytest

from segtrain.commands import complete, evaluate, predict, shells
from segtrain.config.choice import MAY_BE_NONE
from segtrain.config.suggest import groups
from segtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 0.5  # of a Tab


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a data set, configs of his own, the five commands on the path."""
    (tmp_path / "my data" / "voc").mkdir(parents=True)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "minenet.yaml").write_text("defaults: [unet_32, _self_]\n")
    (tmp_path / "mine" / "my_run.yaml").write_text("defaults: [train]\n")
    (tmp_path / "bin").mkdir()
    for name in complete.COMMANDS:
        module = "segtrain" if name == "segtrain" else f"segtrain {name}"
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("PS1", "$ ")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def after(line: str) -> list[str]:
    """The words that the last one of a line may become."""
    words, word, _, _ = shells.split(line)
    return [way.text for way in complete.candidates(words[0], words[1:], word)]


SHORT = {
    "segtrain model=unet_": ["model=unet_32", "model=unet_paper"],
    "segtrain -m model=fcn,unet_p": ["model=fcn,unet_paper"],
    "segtrain writer=[tens": ["writer=[tensorboard"],
    "segtrain --trust nobody mod": [],
    "segtrain mod": ["model.", "model="],
    "segtrain +mod": ["+model.", "+model="],
    "segtrain train.prec": ["train.precision="],
    "segtrain train.precision=": [f"train.precision={name}" for name in ("bf16", "fp16", "fp32")],
    "segtrain train.compile=": ["train.compile=false", "train.compile=true"],
    "segtrain eval.flip=": ["eval.flip=false", "eval.flip=null", "eval.flip=true"],
    "segtrain dataset.root=my": ["dataset.root=my data/"],
    "segtrain dataset.root='my data/": ["dataset.root=my data/voc/"],
    "segtrain resume=m": ["resume=mine/", "resume=my data/"],
    "segtrain --config-dir mine model=mi": ["model=minenet"],
    "segtrain hydra.searchpath=[mine] model=mi": ["model=minenet"],
    "segtrain --config-dir mine --config-name ": ["my_run", "train"],
    "segtrain --config-dir ": ["bin/", "mine/", "my data/"],
    "segtrain --config-dir=mi": ["--config-dir=mine/"],
    "segtrain --cfg ": ["all", "hydra", "job"],
    "segtrain --vers": ["--version"],
    "segtrain hydra.s": ["hydra.searchpath=", "hydra.sweep."],
    "segtrain -m hydra/launcher=g": ["hydra/launcher=gpus"],
    "segtrain recipes ": ["dataset=", "model="],
    "segtrain find_lr low": ["lowest="],
    "segdata ": ["browse", "manifest", "prepare", "stats", "verify"],
    "segdata verify dataset=cam": ["dataset=camvid"],
    "segeval check": ["checkpoint="],
    "segpredict prob": ["probabilities="],
    "segpredict probabilities=t": ["probabilities=true"],
    "segreport mi": ["mine/"],
    "segtrain nothing=": [],
}


@pytest.mark.parametrize("line", SHORT)
def test_the_ways_to_go_on(place: Path, line: str) -> None:
    assert after(line) == SHORT[line]


def test_the_keys_and_words_of_a_chosen_part(place: Path) -> None:
    assert after("segtrain model=deeplabv3plus lr=3 model.backbone=resnet1") == [
        "model.backbone=resnet101",
        "model.backbone=resnet18",
    ]
    assert "~model.weights" in after("segtrain ~model.")


def test_the_parts_of_a_trusted_package_are_offered(tmp_path: Path) -> None:
    with own_package.importable(own_package.installed(tmp_path)):
        assert after("segtrain --trust mylab model=my") == ["model=mynet"]
        assert after("segtrain --trust mylab model=mynet model.") == ["model.width="]
    assert after("segtrain model=my") == []


def test_every_group_and_every_name_is_offered() -> None:
    there = {f"{group}={name}" for group, names in groups().items() for name in names}
    offered = {way for group in groups() for way in after(f"segtrain {group}=")}
    assert offered - {f"{group}=null" for group in MAY_BE_NONE} == there
    assert set(complete.COMMANDS["segeval"]) == set(evaluate.SOURCES)
    assert set(complete.COMMANDS["segpredict"]) == set(predict.ARGUMENTS)


@pytest.mark.parametrize(
    ("line", "shell", "answer"),
    [
        ("segtrain model=unet_", "bash", ["unet_32 ", "unet_paper "]),
        ("segtrain model=unet_", "zsh", ["model=unet_32 ", "model=unet_paper "]),
        ("segtrain model=unet_", "fish", ["model=unet_32", "model=unet_paper"]),
        ("segtrain dataset.root=my", "bash", [r"my\ data/"]),
        ("segtrain 'dataset.root=my", "bash", ["dataset.root=my data/"]),
        ("X=1 /opt/segtrain train.prec", "bash", ["train.precision="]),
        ("segtrain nothing=", "bash", []),
    ],
)
def test_each_shell_gets_words_in_its_own_form(
    place: Path, line: str, shell: str, answer: list[str]
) -> None:
    typed = {"COMP_LINE": f"{line} more", "COMP_POINT": str(len(line)), "COMP_WORDBREAKS": " =:"}
    assert shells.answer("segtrain", shell, typed) == answer


def test_the_script_of_a_shell_is_printed_by_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in complete.COMMANDS:
        shells.run(name, ["install=bash"])
    printed = capsys.readouterr().out
    assert printed.count("segtrain segeval segpredict segdata segreport\n") == 5
    with pytest.raises(UserError, match="install=SHELL"):
        shells.run("segtrain", ["install=tcsh"])


# ---------------------------------------------------------------------- real shells


def typed_into(shell: Sequence[str], keys: Mapping[str, str], seconds: float = 60) -> str:
    """What a shell on a terminal shows when keys are pressed, each once the answer is there.

    `keys` has what each of them must bring, in order.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(shell[0], shell)
    shown = ""
    for key, answer in keys.items():
        seen = len(shown)
        os.write(terminal, key.encode())
        latest = time.monotonic() + seconds
        while answer not in shown[seen:] and time.monotonic() < latest:
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
    os.close(terminal)
    os.waitpid(child, 0)
    return shown


# What is typed, and what a shell makes of it by the Tab key at its end.
TABS = {
    "segtrain model=unet_p\t": "segtrain model=unet_paper ",
    "train.prec\t": "train.precision=",
    "bf\t": "bf16 ",
}


@pytest.mark.slow
def test_bash_itself_completes_a_line_by_tabs(place: Path) -> None:
    install = {'eval "$(segtrain -sc install=bash)"; echo installed=$?\n': "installed=0"}
    files = {"dataset.root=my\t": r"my\ data/", "v\t": "voc/"}
    shown = typed_into(["bash", "--norc"], {**install, **TABS, **files})
    line = r"segtrain model=unet_paper train.precision=bf16 dataset.root=my\ data/voc/"
    assert shown.splitlines()[-1].endswith(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("segtrain model=unet_", ["unet_32 ", "unet_paper "]),
        ("segeval checkpoint=mi", ["mine/"]),
        ("segdata ver", ["verify "]),
        ("segtrain --config-dir mine model=mi", ["minenet "]),
        ("segreport mi", ["mine/"]),
        ("segpredict probabilities=t", ["true "]),
    ],
)
def test_the_function_of_bash_gives_the_replies(place: Path, line: str, replies: list[str]) -> None:
    name = line.split()[0]
    program = f"""
eval "$(segtrain -sc install=bash)"
COMP_LINE={line!r} COMP_POINT={len(line)}
complete -p {name} >&2
_segtrain_completion {name}
printf '%s\\n' "${{COMPREPLY[@]}}"
eval "$(segtrain -sc uninstall=bash)"
complete -p {name} 2>/dev/null && echo still there
"""
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines() == replies, ended
    assert ended.stderr.endswith(f"-F _segtrain_completion {name}\n")


@pytest.mark.slow
def test_zsh_itself_completes_a_line_by_tabs(place: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    install = {'eval "$(segtrain -sc install=zsh)"; echo installed=$?\n': "installed=0"}
    shown = typed_into(["zsh", "-f", "-i"], {**install, **TABS})
    assert "segtrain model=unet_paper train.precision=bf16" in shown


@pytest.mark.slow
def test_fish_itself_completes_a_line(place: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    program = "segtrain -sc install=fish | source; complete -C 'segtrain model=unet_'"
    ended = subprocess.run(["fish", "-N", "-c", program], capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["model=unet_32", "model=unet_paper"], ended


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["segtrain mo", "segtrain model=pspnet dataset=voc model.", "segeval checkpoint="]
)
def test_a_tab_takes_less_than_half_a_second(place: Path, line: str) -> None:
    """Of a fresh process, in seconds of the CPU: what else the machine does is not counted."""
    name = line.split()[0]
    start = [sys.executable, "-m", "segtrain", *([name] if name != "segtrain" else [])]
    typed = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    taken = []
    for _ in range(5):
        before = os.times()
        subprocess.run([*start, "-sc", "query=bash"], env=typed, check=True, capture_output=True)
        now = os.times()
        taken.append(now.children_user + now.children_system)
        taken[-1] -= before.children_user + before.children_system
    assert min(taken) < SECONDS, taken
