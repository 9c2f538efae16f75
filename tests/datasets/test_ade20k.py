"""ADE20K as its archive unpacks: verified, trained, and measured like an independent count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commandline import SMALL_RUN, done, load, refused, save, scored, trained

from segtrain.datasets.ade20k import ADE20K
from segtrain.errors import DataError, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and two validation images of 40 x 48, in the layout of the release."""
    root = tmp_path_factory.mktemp("ade")
    rng = np.random.default_rng(0)
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            name = f"ADE_{short}_{number:08d}"
            base = root / "ADEChallengeData2016"
            save(base / f"images/{split}/{name}.jpg", rng.integers(0, 256, (40, 48, 3), np.uint8))
            labels = rng.integers(0, 151, (5, 6), np.uint8).repeat(8, 0).repeat(8, 1)
            save(base / f"annotations/{split}/{name}.png", labels)
    save(root / "ADEChallengeData2016/images/testing/t.jpg", np.zeros((40, 48, 3), np.uint8))
    return root


def test_maps_of_1_to_150_are_classes_and_0_is_ignored(root: Path) -> None:
    data = ADE20K(str(root), "validation")
    assert data.ids == ["ADE_val_00000001", "ADE_val_00000002"]
    assert (data.labels.num_classes, len(set(data.labels.names))) == (150, 150)
    assert (data.labels.names[0], data.labels.names[12], data.labels.names[149]) == (
        "wall",
        "person",
        "flag",
    )
    assert data.labels.colors[0] == (120, 120, 120)
    sample = data[0]
    raw = load(data.files(0)[1])
    assert (sample.mask == np.where(raw == 0, 255, raw.astype(int) - 1)).all()
    inner = ADE20K(str(root / "ADEChallengeData2016"), "validation")
    assert inner.ids == data.ids
    assert not ADE20K(str(root), "testing").labelled


def test_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images/; unpack ADEChallengeData2016.zip there"):
        ADE20K(str(tmp_path), "training")
    with pytest.raises(UserError, match=r"no split `train`.*training"):
        ADE20K(str(root), "train")
    words = ["dataset=ade20k", f"dataset.root={root}"]
    assert "0 problems" in done("segdata", "verify", *words)
    save(tmp_path / "images/training/a.jpg", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "annotations/training/a.png", np.full((8, 8), 151, np.uint8))
    save(tmp_path / "images/validation/b.jpg", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "annotations/validation/b.png", np.ones((8, 8), np.uint8))
    refused(65, ["a.png", "151"], "segtrain", "dataset=ade20k", f"dataset.root={tmp_path}")


def test_given_predictions_have_the_miou_of_an_independent_count(
    root: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    data = ADE20K(str(root), "validation")
    hit = np.zeros(151)
    true = np.zeros(151)
    said = np.zeros(151)
    for index, name in enumerate(data.ids):
        truth = data[index].mask.astype(int) + 1  # 256: ignored
        guess = np.where(rng.random(truth.shape) < 0.7, truth % 256, rng.integers(1, 151))
        guess = np.where(guess == 0, 1, guess).astype(np.uint8)
        save(tmp_path / f"maps/{name}.png", guess)
        counts = truth != 256
        for label in range(1, 151):
            hit[label] += (counts & (truth == label) & (guess == label)).sum()
            true[label] += (counts & (truth == label)).sum()
            said[label] += (counts & (guess == label)).sum()
    union = true + said - hit
    found = scored(tmp_path / "s", tmp_path / "maps", "dataset=ade20k", f"dataset.root={root}")
    assert found["mIoU"] == pytest.approx((hit[union > 0] / union[union > 0]).mean(), abs=1e-12)
    assert found["pixAcc"] == pytest.approx(hit.sum() / true.sum(), abs=1e-12)


@pytest.mark.slow
def test_it_trains(root: Path, tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run",
        "dataset=ade20k",
        f"dataset.root={root}",
        *SMALL_RUN,
        "train.steps=2",
    )
    assert "150 classes" in (run / "train.log").read_text()
