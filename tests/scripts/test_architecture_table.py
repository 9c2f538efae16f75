"""docs/architecture.md shows what the folders say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "architecture_table.py"


def check(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )


def test_the_page_is_up_to_date() -> None:
    assert check(SCRIPT).returncode == 0


def test_a_folder_that_says_something_else_is_told_and_written(tmp_path: Path) -> None:
    for name in ("scripts", "docs", "segtrain/low", "segtrain/high"):
        (tmp_path / name).mkdir(parents=True)
    script = tmp_path / "scripts" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    page = tmp_path / "docs" / "architecture.md"
    marks = [
        line for line in (ROOT / "docs" / page.name).read_text().splitlines() if "<!--" in line
    ]
    page.write_text("before\n" + "\n".join(marks) + "\nafter\n")
    (tmp_path / "segtrain/low/__init__.py").write_text('"""Hold.\n\nMay import: errors.\n"""\n')
    (tmp_path / "segtrain/high/__init__.py").write_text('"""Use.\n\nMay import: low.\n"""\n')
    told = check(script)
    assert told.returncode == 1
    assert told.stdout == (
        "docs/architecture.md is out of date: run python scripts/architecture_table.py\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert check(script).returncode == 0
    assert page.read_text().splitlines()[1:-1][1:-1] == [
        "| folder | what it does | may import |",
        "|---|---|---|",
        "| `high/` | Use. | `low` |",
        "| `low/` | Hold. | `errors` |",
    ]
