"""Every data set that holds label maps trains a real network on its real sample, as a user would
start it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

# The samples of Cityscapes and PASCAL-Context hold one split each; that of ISBI has no lists, so
# the test writes some.
SETS: dict[str, list[str]] = {
    "camvid": ["dataset=camvid", "dataset.root={data}/camvid"],
    "voc": ["dataset=voc", "dataset.root={data}/voc2012/VOCdevkit"],
    "voc_aug": [
        "dataset=voc",
        "dataset.root={data}/voc2012/VOCdevkit",
        "dataset.train_split=train_aug",
    ],
    "context": ["dataset=context", "dataset.root={data}/pascal_context", "dataset.train_split=val"],
    "context_60": [
        "dataset=context",
        "dataset.root={data}/pascal_context",
        "dataset.train_split=val",
        "dataset.classes=60",
    ],
    "coco_stuff": ["dataset=coco_stuff", "dataset.root={data}/coco"],
    "coco_voc": ["dataset=coco_voc", "dataset.root={data}/coco"],
    "coco_things": ["dataset=coco_things", "dataset.root={data}/coco"],
    "cityscapes": [
        "dataset=cityscapes",
        "dataset.root={data}/cityscapes",
        "dataset.val_split=train",
    ],
    "folder": [
        "dataset=folder",
        "dataset.root={data}/isbi_em",
        "dataset.images=image",
        "dataset.masks=label",
        "dataset.lists={lists}",
        "dataset.labels=[{{id: 0, name: membrane}}, {{id: 255, name: cell}}]",
    ],
}
RUN = [
    "train.steps=20",
    "train.batch_size=2",
    "dataset.crop=[193,193]",
    "augment.scale=[0.5,1.0]",
    "train.eval_every=20",
    "train.precision=fp32",
    "train.threads=1",
    "log.every=1",
    "writer=[]",
    "log.images=1",
    "log.progress=false",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_twenty_steps_lower_the_loss_and_end_with_scores(
    name: str, data_root: Path, tmp_path: Path
) -> None:
    """The loss starts near log(classes), falls, and each class that the sample holds has an IoU."""
    for split, slices in (("train", range(20)), ("val", range(20, 30))):
        (tmp_path / f"{split}.txt").write_text("\n".join(map(str, slices)))
    chosen = [setting.format(data=data_root, lists=tmp_path) for setting in SETS[name]]
    start = [sys.executable, "-m", "segtrain", *chosen, *RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if line["phase"] == "train"]
    (val,) = [line for line in lines if line["phase"] == "val"]
    classes = len([key for key in val if key.startswith("IoU/")])
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    assert 0.5 * math.log(classes) < losses[0] < 2 * math.log(classes) + 1
    assert 0 < val["mIoU"] < 1
    assert 0 < val["pixAcc"] < 1
