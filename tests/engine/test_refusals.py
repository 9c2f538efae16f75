"""Parts that do not fit are refused in one line before a run exists.

Nothing is left behind then: no folder, no events, not even a lock file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import refused, typed
from stubs import InstanceData, SemanticData

from segtrain.config import parts
from segtrain.engine import train
from segtrain.engine.parts import check_model
from segtrain.errors import DataError, UserError

SMALL = [
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "dataset.train=4",
    "dataset.val=2",
    "train.batch_size=2",
    "train.steps=1",
    "train.device=cpu",
    "train.threads=1",
    "train.precision=fp32",
]
UNET = ["model=unet", "model.width=2"]


def test_a_norm_that_would_see_one_value_is_refused_in_one_line(tmp_path: Path) -> None:
    """At 32 x 32 the deepest map is one pixel: of one image it has no variance."""
    one = [
        "model=semantic_fpn",
        "model.weights=null",
        "model.norm=batch",
        "train.batch_size=2",
        "train.accumulate=2",
    ]
    ended = typed("segtrain", *SMALL, *one, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("segtrain: train.batch_size: a process has 1 image at a time")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.monitor=mIuO"], ["train.monitor=mIuO: not logged", "Did you mean `mIoU`?"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1", "a number above 0"]),
        (["optimizer.lr=0"], ["optimizer.lr=0", "a number above 0"]),
        (["schedule.power=-1"], ["schedule.power=-1", "above 0"]),
        (["train.batch_size=3", "train.accumulate=2"], ["train.batch_size=3", "2 or 4 would"]),
        (
            ["train.batch_size=1", "model=pspnet_r18"],
            ["train.batch_size=1", "batch statistics", "accumulate, or take model.norm=group\n"],
        ),
        (
            ["train.batch_size=1", "model=deeplabv3_r18"],
            ["or take model.norm=group or model.image_pooling=false\n"],
        ),
        pytest.param(
            ["train.batch_size=1", "model=deconvnet_vgg11"],
            ["batch statistics; raise batch_size or lower accumulate\n"],
            marks=pytest.mark.slow,
        ),
        (["train.init=nowhere"], ["nowhere: does not exist"]),
        (
            ["model=mask_rcnn_r18"],
            ["MaskRCNN learns from objects", "gives label maps", "dataset=coco_instance"],
        ),
        (
            ["loss=pixel_aux"],
            ["loss: reads the output `aux`, but UNet makes logits", "leave loss= out"],
        ),
        (
            ["model=deeplabv3_r18", "loss=pixel_aux"],
            ["DeepLabV3 makes logits", "set model.aux=true"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if any(word.startswith("model=") for word in overrides) else UNET
    refused(2, words, "segtrain", *SMALL, *model, *overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_semantic_model_on_objects_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "dataset", lambda node, split: InstanceData(split))
    words = ["UNet learns from label maps", "this data set gives objects", "model=mask_rcnn"]
    refused(2, words, "segtrain", *SMALL, *UNET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("split", "words"), [("train", "to train on"), ("val", "to validate with")]
)
def test_a_split_without_labels_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, words: str
) -> None:
    def dataset(node: object, name: str) -> SemanticData:
        images = SemanticData(name)
        images.labelled = name != split
        return images

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "dataset", dataset)
    refused(2, [f"dataset.{split}_split={split}: has no labels {words}"], "segtrain", *SMALL, *UNET)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_somebody_else_is_told_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"model: Conv2d has no `preprocess`; let it subclass"):
        check_model(torch.nn.Conv2d(3, 1, 1))


def test_a_folder_that_was_there_before_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    refused(2, ["nowhere"], "segtrain", *SMALL, *UNET, "train.init=nowhere", "hydra.run.dir=.")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.row("R33")
def test_the_refused_job_of_a_sweep_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = typed("segtrain", "-m", *SMALL, *UNET, "train.monitor=mIuO", "hydra.sweep.dir=sweep")
    assert ended.code == 2, ended
    assert [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == []


def test_data_refused_before_the_first_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: object) -> None:
        raise DataError("a.png: cannot be decoded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "verify", damaged)
    refused(65, ["a.png: cannot be decoded"], "segtrain", *SMALL, *UNET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_workers_refuse_once_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(
        2,
        ["train.monitor=mIuO"],
        "segtrain",
        *SMALL,
        *UNET,
        "train.monitor=mIuO",
        "train.processes=2",
    )
    assert list(tmp_path.iterdir()) == []
