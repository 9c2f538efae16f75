"""The check before training finds exactly the planted faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.verify import verify, verify_labels
from segtrain.datasets.folder import Folder
from segtrain.errors import DataError, complain

LABELS = [{"id": 0, "name": "background"}, {"id": 1, "name": "object"}, {"id": 255, "ignore": True}]


def make(root: Path, count: int, labels: list[dict] = LABELS) -> Folder:
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (4, 3), (i, i, i)).save(root / f"images/train/{i:03}.png")
        Image.fromarray(np.array([[0] * 4, [1] * 4, [1, 1, 1, 255]], np.uint8)).save(
            root / f"masks/train/{i:03}.png"
        )
    return Folder(str(root), "train", labels=labels)


def plant(root: Path) -> list[str]:
    """Four faults; the start of each expected line."""
    (root / "images/train/003.png").write_bytes(b"")
    Image.fromarray(np.full((3, 4), 9, np.uint8)).save(root / "masks/train/011.png")
    Image.new("L", (5, 3)).save(root / "masks/train/020.png")
    Image.new("RGB", (4, 3)).save(root / "masks/train/021.png")
    return [
        f"{root}/images/train/003.png: is empty",
        f"{root}/masks/train/011.png: mask value 9 at (x=0, y=0)",
        f"{root}/masks/train/020.png: mask of 5 x 3",
        f"{root}/masks/train/021.png: mode RGB",
    ]


@pytest.mark.parametrize("workers", [1, 8])
def test_every_planted_fault_is_found_and_nothing_else(tmp_path: Path, workers: int) -> None:
    data = make(tmp_path, 24)
    expected = plant(tmp_path)
    report = verify_labels(data, workers=workers)
    assert report.checked == 24
    assert len(report.problems) == 4
    for line, start in zip(report.problems, expected, strict=True):
        assert line.startswith(start)
        assert "\n" not in line
    # 20 good masks of 4 background, 7 object and 1 ignored pixel
    assert {i: int(n) for i, n in enumerate(report.pixels) if n} == {0: 80, 1: 140, 255: 20}


def test_verify_raises_one_error_that_begins_with_the_first_file(tmp_path: Path) -> None:
    data = make(tmp_path, 24)
    expected = plant(tmp_path)
    with pytest.raises(DataError) as caught:
        verify(data)
    assert str(caught.value).startswith(expected[0])
    assert str(caught.value).endswith("(and 3 more; segdata verify lists them)")


def test_many_problems_make_one_line_that_counts_them(tmp_path: Path) -> None:
    data = make(tmp_path, 23)
    for path in (tmp_path / "masks/train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        verify(data)
    assert len(str(caught.value).splitlines()) == 1
    assert "(and 22 more;" in str(caught.value)


def test_a_limit_checks_samples_from_first_to_last(tmp_path: Path) -> None:
    data = make(tmp_path, 24)
    assert verify(data, limit=3).checked == 3
    assert verify(data, limit=99).checked == 24
    (tmp_path / "masks/train/023.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"023.png: is empty"):
        verify(data, limit=3)
    assert verify_labels(data, indices=[0, 5]).problems == []


def test_the_ranks_together_check_every_sample_once(tmp_path: Path) -> None:
    data = make(tmp_path, 7)
    (tmp_path / "masks/train/004.png").write_bytes(b"")
    reports = [verify_labels(data, range(rank, 7, 3)) for rank in range(3)]
    assert [report.checked for report in reports] == [3, 2, 2]
    assert [len(report.problems) for report in reports] == [0, 1, 0]
    with pytest.raises(DataError, match=r"004.png: is empty"):
        complain([problem for report in reports for problem in report.problems])


def test_a_few_background_masks_are_no_reason_to_call_the_data_set_binary(tmp_path: Path) -> None:
    data = make(tmp_path, 20)
    Image.fromarray(np.array([[0, 255, 0, 0]] * 3, np.uint8)).save(tmp_path / "masks/train/000.png")
    assert verify_labels(data, indices=[0]).problems == []


def test_progress_counts_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(make(tmp_path, 5), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_masks_of_0_and_255_only_are_refused_where_255_means_ignored(tmp_path: Path) -> None:
    data = make(tmp_path, 3)
    for path in (tmp_path / "masks/train").iterdir():
        Image.fromarray(np.array([[0, 255, 0, 0]] * 3, np.uint8)).save(path)
    with pytest.raises(
        DataError,
        match=r"^.*/masks/train/000.png: this and every other checked mask"
        r".*Binary 0/255.*id: 255, name: object",
    ):
        verify(data)
    fixed = [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}]
    assert verify(Folder(str(tmp_path), "train", labels=fixed)).pixels[1] == 9
