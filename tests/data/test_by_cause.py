"""`segdata verify` groups what it found by cause: the first three of each kind, and a count.

Members: masks of another size, masks with a value that is not listed, images without a partner,
names with spaces, lines of a list, entries of a COCO file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commandline import save, typed

from segtrain.data.verify import by_cause

KINDS = [
    [
        "m/a_1.png: mask of 30 x 20 pixels, but its image i/a_1.jpg has 20 x 30",
        "m/b.png: mask of 300 x 2 pixels, but its image i/b.jpg has 7 x 3",
    ],
    [
        "my data/masks/my cat.png: has no partner my data/images/my cat.*",
        "my data/masks/his dog.png: has no partner my data/images/his dog.*",
        "my data/masks/c.png: has no partner my data/images/c.*",
    ],
    [
        "train.txt, line 3: `a` is listed twice (first in line 2)",
        "train.txt, line 17: `my cat` is listed twice (first in line 1)",
    ],
    [
        "i/a.* and m/a.*: listed, but not there",
        "i/b.*: listed, but not there",
    ],
    ["i/c.*: listed, but not there; list ids without the suffix"],
]


def test_a_kind_is_what_is_said_whatever_the_file() -> None:
    mixed = [group[k] for k in range(3) for group in KINDS if k < len(group)]
    assert by_cause(mixed) == KINDS
    assert by_cause([]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """112 masks that are twice as wide as their images, and one with a value of no class."""
    for number in range(113):
        wide = 16 if number else 8
        save(tmp_path / f"images/train/p{number:03}.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / f"masks/train/p{number:03}.png", np.full((8, wide), not number, np.uint8))
    save(tmp_path / "masks/train/p000.png", np.full((8, 8), 9, np.uint8))
    return tmp_path


def test_112_lines_of_one_cause_are_four(folder: Path, tmp_path: Path) -> None:
    words = ["verify", "dataset=folder", f"dataset.root={folder}", "dataset.split=train"]
    words += ["dataset.labels=[background,object]", "log.progress=false"]
    ended = typed("segdata", *words)
    lines = ended.err.splitlines()
    assert ended.code == 65
    assert "p000.png: " in lines[0]
    assert "9" in lines[0]
    assert [f"p{number:03}.png: mask of 16 x 8 pixels" in lines[number] for number in (1, 2, 3)]
    assert lines[4] == "  and 109 more of this kind"
    assert lines[5] == (
        "segdata: 113 problems in train, the first of each kind above; output=FILE keeps all"
    )
    assert len(lines) == 6

    report = tmp_path / "report.txt"
    ended = typed("segdata", *words, f"output={report}")
    assert ended.err.splitlines()[5].endswith(
        f"the first of each kind above; all stand in {report}"
    )
    kept = report.read_text().splitlines()
    assert len(kept) == 113
    assert sum("mask of 16 x 8 pixels" in line for line in kept) == 112
