"""README.md says only what works.

Every command line in it is run, composed or checked, and no line is passed over.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import own_package
import pytest
from PIL import Image

import segtrain
from segtrain.engine.evidence import refuse_changes

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("segtrain", "segeval", "segpredict", "segdata", "segreport")
SHELL = ("source .venv/bin/activate",)  # lines that only prepare the shell
TINY = [
    "train.steps=2",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.threads=1",
    "writer=[]",
]
SHAPES = ["dataset.train=8", "dataset.val=2"]
# run folders that README's own commands make before they use them
HERE = (
    "outputs/first",
    "outputs/mine",
)
SMALL_CROP = "dataset.crop=[64,64]"


@dataclass(frozen=True)
class Line:
    """One command: its words and what the test does with it."""

    text: str
    words: tuple[str, ...]
    kind: str  # run, compose, own (with parts of the user's package), make, shell

    @property
    def overrides(self) -> list[str]:
        """The `key=value` words that are settings of a run."""
        known = ("checkpoint", "predictions", "input", "output", "resume", "import", "extend")
        known += ("probabilities", "annotations")  # of segpredict
        pairs = [w for w in self.words if "=" in w and not w.startswith("-")]
        return [w for w in pairs if w.partition("=")[0] not in known]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in `language`."""
    return [body for name, body in BLOCK.findall(text) if name == language]


def bash_lines(text: str) -> Iterator[Line]:
    """Every command of every bash block, continued lines joined, comments gone."""
    for body in blocks(text, "bash"):
        for text_line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(text_line, comments=True)
            if words:
                yield Line(" ".join(words), tuple(words), kind_of(words))


def kind_of(words: list[str]) -> str:
    """What can be done with a command. Fails on one that nothing is known about."""
    if " ".join(words) in SHELL:
        return "shell"
    if words[0] == "make":
        return "make"
    if "--trust" in words:
        return "own"
    if words[0] in ("torchrun", "sbatch"):
        return "compose"
    assert words[0] in COMMANDS, (
        f"README.md: `{' '.join(words)}` is of no kind this test knows how to check"
    )
    if words[:2] == ["segtrain", "recipes"]:
        return "run"
    pairs = dict(word.partition("=")[::2] for word in words if "=" in word)
    stored = [pairs[key] for key in ("checkpoint", "resume") if key in pairs]
    elsewhere = pairs.get("dataset", "shapes") not in ("shapes", "folder") or {
        "experiment",
        "ablation",
    } & set(pairs)
    several = "train.processes" in pairs or pairs.get("train.device") == "cuda"
    return "compose" if elsewhere or several or any(path not in HERE for path in stored) else "run"


def tiny(line: Line) -> list[str]:
    """The settings appended so that a command ends within seconds."""
    name = line.words[0]
    words = line.words
    if words[1:2] == ("recipes",):
        return []
    if any(word.startswith("resume=") for word in words) or name in ("segreport", "segpredict"):
        return []
    if name == "segeval":
        return [] if "predictions=" in line.text else ["eval.worst=1"]
    mine = "dataset=folder" in words
    data = [SMALL_CROP] if mine else SHAPES
    return data if name == "segdata" else [*TINY, *data]


@pytest.fixture
def mylab(tmp_path: Path) -> Iterator[Path]:
    """A package with the parts that README and docs/adding.md name, installed for one test."""
    files = {**own_package.FILES, **own_package.on_page()}
    with own_package.importable(own_package.installed(tmp_path / "site", files)) as folder:
        yield folder


LINES = list(bash_lines(README))
PYTHON = blocks(README, "python")
CHILD = """
import contextlib, io, json, runpy, sys, traceback
from segtrain.commands import main
results = {}
for text, (name, *arguments) in json.loads(sys.argv[1]):
    sys.argv, code, output = [name, *arguments], 0, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_path(arguments[0]) if name == "python" else getattr(main, name)()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    results[text] = {"code": code, "text": output.getvalue()}
print(json.dumps(results))
"""


def of(kind: str) -> list[Line]:
    return [line for line in LINES if line.kind == kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what README takes for granted: photos/ and a small data set of one's own in
    my_data/.
    """
    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    names = [
        "photos/a.jpg",
        *(f"my_data/images/{split}/{i}.jpg" for split in ("train", "val") for i in range(2)),
    ]
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(path)
        if name.startswith("my_data"):
            mask = place / name.replace("images", "masks").replace(".jpg", ".png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.choice(np.array([0, 1, 2, 255], np.uint8), (64, 80))).save(mask)
    return place


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, dict]:
    """What each command on embedded data and each Python block did: {code, text}, in the order of
    the page.

    One process calls the console functions one after another, so torch is imported once.
    """
    lines = [(line.text, [*line.words, *tiny(line)]) for line in of("run")]
    for number, code in enumerate(PYTHON):
        (place / f"block{number}.py").write_text(code)
        lines.append((code, ["python", f"block{number}.py"]))
    start = [sys.executable, "-c", CHILD, json.dumps(lines)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run(start, cwd=place, env=env, timeout=300, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_every_block_is_in_a_language_that_is_checked() -> None:
    assert {name for name, _ in BLOCK.findall(README)} <= {"bash", "python", "text"}
    assert README.count("```") == 2 * len(BLOCK.findall(README))
    assert len(LINES) > 20


@pytest.mark.row("R37")
@pytest.mark.parametrize("line", of("run"), ids=lambda line: line.text)
def test_a_command_on_embedded_data_runs_as_written(line: Line, results: dict) -> None:
    assert results[line.text]["code"] == 0, results[line.text]["text"]


@pytest.mark.row("R37")
def test_the_commands_leave_the_files_that_the_page_names(results: dict, place: Path) -> None:
    run = place / "outputs" / "first"
    table = re.search(r"## What a run folder holds\n(.*?)\n## ", README, re.DOTALL)
    assert table is not None
    named = re.findall(r"^\| `([^`]+)` ", table.group(1), re.MULTILINE)
    assert len(named) > 6
    tensorboard_off = {"tensorboard/"} & set(named)
    missing = {name for name in named if not (run / name).exists()}
    assert missing == tensorboard_off
    unnamed = {p.name for p in run.iterdir() if not p.name.startswith(".")} - {
        n.strip("/").split("/")[0] for n in named
    }
    assert not unnamed, unnamed
    assert sorted(p.name for p in (place / "predictions").glob("*g")) == [
        "a.png",
        "a_overlay.png",
    ]


@pytest.mark.row("R37")
@pytest.mark.parametrize("line", of("compose"), ids=lambda line: line.text)
def test_a_command_that_needs_data_or_gpus_composes_and_passes_the_static_check(line: Line) -> None:
    # refuses unknown groups, keys, parts, arguments and values
    run = segtrain.compose(line.overrides)
    asked = dict(o.partition("=")[::2] for o in line.overrides)
    if "dataset" in asked:
        chosen = (ROOT / "conf" / "dataset" / f"{asked['dataset']}.yaml").read_text()
        assert f"_target_: {run.dataset['_target_']}\n" in chosen
    if line.words[0] == "torchrun":
        assert line.words[line.words.index("-m") + 1] == "segtrain"
    if line.words[0] == "sbatch":
        assert [ROOT / word for word in line.words if word.startswith("scripts/")] == [
            ROOT / "scripts" / "slurm.sh"
        ]
        assert (ROOT / "scripts" / "slurm.sh").is_file()


def test_a_training_on_a_benchmark_that_has_to_be_fetched_names_its_model() -> None:
    """The default one is small, and starts from random weights."""
    trainings = [line for line in of("compose") if line.words[0] == "segtrain" and line.overrides]
    on_data = [line for line in trainings if "dataset.root=" in line.text]
    chosen = ("model=", "experiment=", "ablation=", "import=")
    assert [o.text for o in on_data if not any(w.startswith(chosen) for w in o.words)] == []
    assert len(on_data) >= 4


def composed_with_own_parts(line: Line) -> None:
    """The settings name parts of the packages that docs/adding.md and own_package build."""
    assert line.words[line.words.index("--trust") + 1] == "mylab"
    segtrain.compose([o for o in line.overrides if "," not in o], trust=["mylab"])


@pytest.mark.row("R37")
@pytest.mark.parametrize("line", of("own"), ids=lambda line: line.text)
def test_a_command_with_own_parts_composes(line: Line, mylab: Path) -> None:
    composed_with_own_parts(line)


@pytest.mark.row("R37")
@pytest.mark.parametrize("line", of("make"), ids=lambda line: line.text)
def test_a_make_line_names_targets_of_the_makefile(line: Line) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in line.words[1:] if "=" not in word} <= targets


@pytest.mark.row("R37")
@pytest.mark.parametrize("code", PYTHON)
def test_a_python_block_runs_and_uses_public_names_only(code: str, results: dict) -> None:
    tree = ast.parse(code)
    used = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "segtrain"
    }
    imported = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("segtrain")
    ]
    assert used
    assert used <= set(segtrain.__all__)
    assert not imported
    assert results[code]["code"] == 0, results[code]["text"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_of_a_known_kind_and_compose(page: Path, mylab: Path) -> None:
    for line in bash_lines(page.read_text(encoding="utf-8")):
        if line.kind == "own":
            composed_with_own_parts(line)
        elif any(word.startswith("resume=") for word in line.words):
            refuse_changes(line.overrides)
        elif line.words[0] in (*COMMANDS, "torchrun", "sbatch") and line.overrides:
            segtrain.compose([o for o in line.overrides if "," not in o or "[" in o])


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_test_that_a_page_cites_exists(page: Path) -> None:
    cited = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    defined = {
        n
        for f in (ROOT / "tests").rglob("*.py")
        for n in re.findall(r"def (test_\w+)", f.read_text())
    }
    assert cited <= defined, cited - defined
