"""docs/systems.md is made of the headers of the recipes, and tells where every number is from."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtrain.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "systems_table.py"
sys.path.insert(0, str(SCRIPT.parent))
systems_table: Any = __import__("systems_table")
RECIPE = ROOT / "conf" / "experiment" / "fcn8s_voc.yaml"


def read(path: Path) -> Any:
    return systems_table.read_header(path, systems_table.EXPERIMENT_KEYS)


def changed(folder: Path, old: str, new: str) -> Path:
    """A copy of a recipe with one change."""
    text = RECIPE.read_text()
    assert old in text
    path = folder / RECIPE.name
    path.write_text(text.replace(old, new, 1))
    return path


def test_the_page_is_up_to_date() -> None:
    assert systems_table.PAGE.read_text() == systems_table.page(), (
        "run python scripts/systems_table.py"
    )


def test_every_recipe_and_every_sweep_has_all_keys_of_a_header() -> None:
    experiments = systems_table.experiments()
    ablations = systems_table.ablations()
    assert len(experiments) >= 68
    assert len(ablations) >= 28
    for header in (*experiments, *ablations):
        assert all(text.strip() for lines in header.fields.values() for text in lines), header.name
    assert {header.parts[0] for header in experiments} == set(systems_table.SYSTEMS)


def test_every_number_stands_with_a_split_a_pre_training_and_a_source() -> None:
    page = systems_table.page()
    for header in systems_table.experiments():
        (line,) = re.findall(rf"^\| \[`{header.name}`\].*$", page, re.MULTILINE)
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == 4
        assert all(cells)
        assert "not yet measured" in cells[3]
        (facts,) = re.findall(rf"^- `{header.name}`\n((?:  - .*\n)+)", page, re.MULTILINE)
        keys = re.findall(r"^  - ([a-zA-Z-]+): \S", facts, re.MULTILINE)
        assert keys == ["split", "pre-training", "GPUs", "source"]
        assert "trained on" in facts
        assert re.search(r"pre-training: .*(ImageNet|none)", facts)


def test_the_overview_has_one_number_a_cell_the_highest() -> None:
    rows = list(systems_table.overview(systems_table.experiments()))[2:]
    cells = [cell.strip() for line in rows for cell in line.strip("|").split(" | ")[1:]]
    numbers = [cell for cell in cells if cell]
    assert len(rows) == 12
    assert all(re.fullmatch(r"\[[^\]]*\d\.\d+[^\]]*\]\(\S+\.yaml\)", cell) for cell in numbers)
    pspnet = next(line for line in rows if "PSPNet" in line)
    assert "[85.4 mIoU](../conf/experiment/pspnet101_voc_coco.yaml)" in pspnet
    assert "pspnet50_voc" not in pspnet


def test_the_sweeps_row_of_numbers_is_as_long_as_the_sweep() -> None:
    for header in systems_table.ablations():
        jobs = 1
        for values in header.body["hydra"]["sweeper"]["params"].values():
            jobs *= len(re.findall(r"\[[^\]]*\]|[^,\[\]]+", values))
        numbers = re.split(r" mIoU| mask AP| AR@1000", header["Paper"])[0].split(", ")
        assert all(re.fullmatch(r"none|\d\d\.\d\d?", number) for number in numbers), header.name
        assert len(numbers) == jobs or header["Paper"] == "none", header.name


@pytest.mark.parametrize(
    "key", ["Run", "Test", "Paper", "Split", "Weights", "GPUs", "Source", "Ours"]
)
def test_a_header_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    lines = RECIPE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"# {key}:"))
    end = next(
        number for number in range(start + 1, len(lines)) if not lines[number].startswith("#  ")
    )
    path = tmp_path / "lacking.yaml"
    path.write_text("\n".join(lines[:start] + lines[end:]))
    with pytest.raises(UserError, match=f"lacking.yaml: lacks {key};"):
        read(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# @package _global_\n", "", "begins with"),
        ("# Paper:", "# Papers:", "lacks Paper"),
        ("# Source:", "# Ours:", "has Ours twice"),
        ("# Split:", "#Split:", "neither a key nor more of one"),
        ("# Split:    ", "# Added:    a key of its own\n# Split:    ", "has the keys"),
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(changed(tmp_path, old, new))


def test_a_title_of_another_form_and_a_system_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the title reads"):
        _ = read(changed(tmp_path, "# FCN (Long", "# FCN by Long")).parts
    stranger = read(changed(tmp_path, "# FCN (", "# SegNet ("))
    with pytest.raises(UserError, match="SegNet: no system"):
        list(systems_table.overview([stranger]))


def test_commands_are_read_over_several_lines_and_without_notes(tmp_path: Path) -> None:
    old = next(line for line in RECIPE.read_text().splitlines() if line.startswith("# Run:"))
    lines = ("segtrain a=1", "b=2", "(a note", "of two lines)", "segeval c=[1,2]: 62.2, test")
    new = "# Run:      " + "\n#           ".join(lines)
    header = read(changed(tmp_path, old, new))
    assert header.commands("Run") == [("segtrain a=1 b=2", ""), ("segeval c=[1,2]", "62.2, test")]


def test_fcn8s_stands_before_fcn16s_and_links_lead_to_headings() -> None:
    names = [header.name for header in systems_table.experiments()]
    assert names.index("fcn8s_voc") < names.index("fcn16s_voc") < names.index("fcn32s_voc")
    page = systems_table.page()
    assert "[DeepLabv3](#deeplabv3)" in page
    assert "[DeepLabv3+](#deeplabv3-1)" in page
    for target in re.findall(r"\]\((\.\./[^)]+)\)", page):
        assert (ROOT / "docs" / target).is_file()


def test_check_ends_with_1_where_the_page_is_out_of_date(tmp_path: Path) -> None:
    for part in ("scripts/systems_table.py", "docs/systems.md"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    start = [sys.executable, str(tmp_path / "scripts" / "systems_table.py"), "--check"]
    assert subprocess.run(start, capture_output=True).returncode == 0
    recipe = tmp_path / "conf" / "experiment" / RECIPE.name
    recipe.write_text(recipe.read_text().replace("65.5 mIoU", "65.6 mIoU"))
    late = subprocess.run(start, capture_output=True, text=True)
    assert late.returncode == 1
    assert "out of date" in late.stderr
    recipe.write_text(recipe.read_text().replace("# Paper:", "# Number:"))
    broken = subprocess.run(start, capture_output=True, text=True)
    assert broken.returncode == 1
    assert "fcn8s_voc.yaml: lacks Paper" in broken.stderr
    assert "Traceback" not in broken.stderr
