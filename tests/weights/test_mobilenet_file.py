"""The DeepLabv3 on MobileNet-v2 that TensorFlow trained on VOC comes in, and sees what it saw."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from commandline import typed
from PIL import Image

DATA = os.environ.get("SEGTRAIN_DATA")
pytestmark = pytest.mark.skipif(
    DATA is None, reason="SEGTRAIN_DATA names no folder with the sample of VOC and its weights"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert DATA is not None
    folder = tmp_path_factory.mktemp("import") / "run"
    ended = typed(
        "segtrain",
        f"import={DATA}/weights/deeplabv3_mnv2_voc_tvnorm.safetensors",
        "dataset=voc",
        f"dataset.root={DATA}/voc2012/VOCdevkit",
        f"hydra.run.dir={folder}",
    )
    assert ended.code == 0, ended
    assert "context: 18 of 18 tensors" in ended.out
    return folder


@pytest.mark.slow
def test_its_labels_are_those_of_the_network_that_it_was_made_of(run: Path, tmp_path: Path) -> None:
    assert DATA is not None
    theirs = sorted(Path(DATA, "weights/deeplabv3_mnv2_voc_source_labels").glob("*.png"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in theirs:
        name = f"{path.stem}.jpg"
        (photos / name).symlink_to(Path(DATA, "voc2012/VOCdevkit/VOC2012/JPEGImages", name))
    out = tmp_path / "out"
    ended = typed("segpredict", f"checkpoint={run}", f"input={photos}", f"output={out}")
    assert ended.code == 0, ended
    same = total = 0
    for path in theirs:
        ours = np.array(Image.open(out / path.name))
        source = np.array(Image.open(path))
        same += int((ours == source).sum())
        total += source.size
    assert len(theirs) == 67
    assert same / total >= 0.99


@pytest.mark.slow
def test_its_score_on_the_67_images_of_the_sample(run: Path) -> None:
    ended = typed("segeval", f"checkpoint={run}")
    assert ended.code == 0, ended
    (file,) = run.glob("eval/**/metrics.json")
    scores = json.loads(file.read_text())
    assert scores["mIoU"] == pytest.approx(0.6993, abs=0.001)
    assert scores["pixAcc"] == pytest.approx(0.9506, abs=0.0005)
