"""What the documents name exists: files, folders, tests, and names of segtrain."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT, missing

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "segtrain").rglob("*.py")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_names_that_do_not_exist_are_found_and_others_left_alone() -> None:
    text = (
        "`segtrain/models/fnc.py` `models/fcn.py` `models/nothing.py` `test_absent` "
        "`my_data/x.png` "
        "`segtrain.models.fcn.FCN` `segtrain.models.fcn.FNC` `segtrain.load` `segtrain.lood` "
        "`docs/`"
    )
    assert missing(text) == [
        "segtrain/models/fnc.py",
        "models/nothing.py",
        "test_absent",
        "segtrain.models.fcn.FNC",
        "segtrain.lood",
    ]
