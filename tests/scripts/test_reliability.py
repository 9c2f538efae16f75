"""The matrix of failures: each row has a test, and its table says what ran, failed, is missing.

Members: a row whose cases are too few, one that failed, one that ran on a GPU alone, one asked for
by name, numbers that several tests add up to, the long form, a line that is still being written.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rows import ROWS

TESTS = Path(__file__).resolve().parents[1]
SCRIPTS = TESTS.parent / "scripts"


def marked(text: str) -> Iterator[str]:
    """Yield the rows that a module's tests are marked with, wherever the mark stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
            yield from (ast.literal_eval(argument) for argument in node.args)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("reliability")


def line(row: str, cases: int = 1, **told: Any) -> dict[str, Any]:
    """Return what a test of `row` writes."""
    plain = {"test": f"tests/test_{row}.py::test_a", "rows": [row], "failed": False}
    kills = {"before": 0, "between": 0, "inside": 0}
    return plain | kills | {"skipped": False, "seconds": 0.4, "cases": cases, "seeds": []} | told


def test_every_row_has_a_test_and_every_mark_names_a_row() -> None:
    texts = [path.read_text("utf-8") for path in sorted(TESTS.rglob("*.py"))]
    found = [row for text in texts if "mark.row(" in text for row in marked(text)]
    assert set(found) == set(ROWS)


def test_marks_are_found_on_tests_cases_and_modules() -> None:
    text = """
pytestmark = [pytest.mark.slow, pytest.mark.row("R1")]
@pytest.mark.row("R2", "R3")
@pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.row("R4"))])
def test_a(a): "pytest.mark.row('R5')"
"""
    assert sorted(marked(text)) == ["R1", "R2", "R3", "R4"]


def test_the_table_adds_up_the_cases_seeds_and_kills_of_a_row(script: ModuleType) -> None:
    lines = [
        line("R1", 4, seeds=[7], before=1, between=2, seconds=3.0),
        line("R1", 1200, seeds=[0, 7], between=1, inside=1200, rows=["R1", "R13"], seconds=2.6),
        line("R13", 0, skipped=True),
    ]
    text, whole = script.table(lines, False, ["R1", "R13"])
    assert text == (
        "| row | what happens | cases | demanded | seeds "
        "| kills before / between / inside saves | failed | seconds |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| R1 | kill -9 anywhere in training | 1,204 | 10 | 0, 7 | 1 / 3 / 1200 | 0 | 6 |\n"
        "| R13 | signals, at any moment, to any process | 1,200 | 14 "
        "| 0, 7 | 0 / 1 / 1200 | 0 | 3 |\n\n1,204 cases in 3 tests, 1 skipped"
    )
    assert whole


@pytest.mark.parametrize(
    ("lines", "long", "whole"),
    [
        ([line("R15", 4)], False, True),
        ([line("R15", 3)], False, False),
        ([], False, False),
        ([line("R15", 4), line("R15", failed=True)], False, False),
        ([line("R15", 4), line("R16", failed=True)], False, True),  # of a row that was not asked
        ([line("R22", 6), line("R15", 4)], True, True),
    ],
    ids=["met", "too few", "none", "failed", "another failed", "another missing"],
)
def test_a_failure_or_too_few_cases_of_an_asked_row_are_not_the_whole(
    script: ModuleType, lines: list[dict[str, Any]], long: bool, whole: bool
) -> None:
    text, found = script.table(lines, long, ["R15"])
    assert found is whole
    failed = [each["test"] for each in lines if each["failed"]]
    assert [row for row in text.splitlines() if row.startswith("failed: ")] == [
        f"failed: {test}" for test in failed
    ]


def test_the_long_form_demands_more_and_a_gpu_is_not_demanded(script: ModuleType) -> None:
    enough = [line(name, row.fast) for name, row in ROWS.items() if name != "R28"]
    assert script.table(enough, False, [])[1]
    assert not script.table(enough, True, [])[1]
    text, whole = script.table([line(name, row.long) for name, row in ROWS.items()], True, [])
    assert whole
    assert [row.split(" | ")[0] for row in text.splitlines()[2 : 2 + len(ROWS)]] == [
        f"| {name}" for name in ROWS
    ]
    failed = [line("R28", 0, failed=True)]
    assert not script.table(enough + failed, False, [])[1]


def test_a_line_that_is_still_being_written_is_not_read(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "cases_0.jsonl"
    file.write_text('{"cases": 1}\n{"cases": 2}\n{"cas')
    assert script.records([file, tmp_path / "not begun.jsonl"]) == [{"cases": 1}, {"cases": 2}]
