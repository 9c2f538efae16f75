"""`segtrain import=FILE`: a file of published weights becomes a run, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import typed
from PIL import Image
from torch import Tensor
from torchvision_files import fcn_resnet18, resnet18

import segtrain
from segtrain.commands.report import report
from segtrain.structures.labels import LabelMap

CLASSES = 6  # of the generated shapes
SHAPES = ("dataset=shapes", "dataset.val=2", "dataset.train=4")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's own FCN on the shapes, as torchvision's training script saves it."""
    torch.manual_seed(0)
    torch.save({"model": fcn_resnet18(CLASSES), "epoch": 3}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def imported(file: Path, *words: str) -> Path:
    run = file.parent / "run"
    ended = typed("segtrain", f"import={file}", *SHAPES, f"hydra.run.dir={run}", *words)
    assert ended.code == 0, ended
    return run


def refused(file: Path, *words: str) -> str:
    """The one line with which an import ends, which leaves nothing behind."""
    run = file.parent / "none"
    ended = typed("segtrain", f"import={file}", *SHAPES, f"hydra.run.dir={run}", *words)
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert not run.exists()
    return ended.err


def test_a_file_becomes_a_run_with_the_settings_that_its_shapes_tell(file: Path) -> None:
    run = file.parent / "run"
    ended = typed("segtrain", f"import={file}", *SHAPES, f"hydra.run.dir={run}")
    assert "theirs.pth: torchvision FCN (torch), 128 tensors" in ended.out
    assert "backbone: 120 of 120 tensors\n  head: 8 of 8 tensors\n" in ended.out
    assert f"segeval checkpoint={run}" in ended.out
    loaded = segtrain.load(run)
    assert loaded.run.model["backbone"] == "resnet18"
    assert loaded.run.model["weights"] is None
    assert loaded.source.step == 0
    state = loaded.network.state_dict()
    theirs: dict[str, Tensor] = torch.load(file, weights_only=True)["model"]
    for ours, name in (
        ("backbone.stem.0.weight", "backbone.conv1.weight"),
        (
            "backbone.stages.3.0.downsample.1.running_var",
            "backbone.layer4.0.downsample.1.running_var",
        ),
        ("head.classifier.0.1.bias", "classifier.1.bias"),
        ("head.classifier.2.weight", "classifier.4.weight"),
    ):
        assert torch.equal(state[ours], theirs[name]), ours
    prediction = loaded(np.zeros((64, 64, 3), np.uint8))
    assert isinstance(prediction, Tensor)
    assert prediction.shape == (64, 64)


@pytest.mark.slow
def test_an_imported_run_is_not_resumed_but_trained_from(file: Path) -> None:
    run = imported(file)
    ended = typed("segtrain", f"resume={run}")
    assert ended.code == 2
    assert f"train from it with segtrain train.init={run}" in ended.err
    again = typed("segtrain", f"import={file}", *SHAPES, f"hydra.run.dir={run}")
    assert again.code == 2
    assert "holds a run already" in again.err


@pytest.mark.slow
def test_a_file_and_the_run_made_of_it_start_a_training_alike(file: Path) -> None:
    sources = {"of_file": file, "of_run": imported(file)}
    states = []
    for name, source in sources.items():
        target = file.parent / name
        ended = typed(
            "segtrain",
            "model=fcn_resnet50",
            "model.backbone=resnet18",
            *SHAPES,
            "model.weights=null",
            f"train.init={source}",
            f"hydra.run.dir={target}",
            "train.steps=1",
            "train.batch_size=2",
            "train.threads=1",
            "writer=[]",
        )
        assert ended.code == 0, ended
        assert "120 of 120 tensors" in ended.out
        states.append(segtrain.load(target).network.state_dict())
    first, second = states
    backbone = [key for key in first if key.startswith("backbone.")]
    assert len(backbone) == 120
    assert all(torch.equal(first[key], second[key]) for key in backbone)


@pytest.mark.slow
def test_the_classes_of_a_release_go_by_name_where_a_data_set_has_another_order(
    tmp_path: Path,
) -> None:
    """The data set lists VOC's 21 classes from the last one to background."""
    torch.manual_seed(0)
    theirs = fcn_resnet18(21)
    torch.save({"model": theirs}, tmp_path / "voc.pth")
    names = LabelMap.load("voc").names[::-1]
    classes = [{"id": index, "name": name} for index, name in enumerate(names)]
    for folder in ("images", "masks"):
        (tmp_path / folder / "val").mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "images" / "val" / "a.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "masks" / "val" / "a.png")
    run = tmp_path / "run"
    words = ("dataset=folder", f"dataset.root={tmp_path}", f"hydra.run.dir={run}")
    ended = typed("segtrain", f"import={tmp_path / 'voc.pth'}", *words)
    assert ended.code == 0, ended
    assert "in that of the release, which is the table `voc`" in ended.out
    loaded = segtrain.load(run)
    assert loaded.labels.names == names
    state = loaded.network.state_dict()
    for ours, name in (("weight", "classifier.4.weight"), ("bias", "classifier.4.bias")):
        assert torch.equal(state[f"head.classifier.2.{ours}"], theirs[name].flip(0))
    assert torch.equal(state["backbone.stem.0.weight"], theirs["backbone.conv1.weight"])


@pytest.mark.slow
def test_an_imported_run_is_measured_and_predicts(file: Path) -> None:
    run = imported(file)
    # At torchvision's shorter side of 520 these images would be 30 times as many pixels.
    assert typed("segeval", f"checkpoint={run}", "inference.base=96").code == 0
    (results,) = run.glob("eval/**/metrics.json")
    assert 0 <= json.loads(results.read_text())["mIoU"] <= 1
    assert " imported " in report([run])


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing(file: Path) -> None:
    wrong_model = refused(file, "model=unet")
    assert "does not fit the model" in wrong_model
    assert "table=whole" in wrong_model
    assert "backbone.stages.0.2" in refused(file, "model.backbone=resnet34")

    state = fcn_resnet18(CLASSES + 1)
    torch.save(state, file)
    assert "has 7 classes, the data set shapes has 6" in refused(file)
    state = fcn_resnet18(CLASSES)
    del state["classifier.1.running_var"]
    torch.save(state, file)
    assert "head.classifier.0.1.running_var: not in the file" in refused(file)
    torch.save({**fcn_resnet18(CLASSES), "extra.weight": torch.zeros(1)}, file)
    assert "keys that are not understood: extra.weight" in refused(file)
    state = fcn_resnet18(CLASSES)
    state["classifier.4.bias"][0] = torch.nan
    torch.save(state, file)
    assert "not finite" in refused(file)
    state = fcn_resnet18(CLASSES)
    state["classifier.4.bias"] = state["classifier.4.bias"].to(torch.int8)
    torch.save(state, file)
    assert "torch.int8" in refused(file)
    del state["backbone.layer2.1.conv1.weight"]
    del state["backbone.layer2.1.conv2.weight"]
    torch.save(state, file)
    assert "2, 1, 2, 2 blocks" in refused(file)
    torch.save({**fcn_resnet18(CLASSES), "\x1b[2Jx": torch.zeros(1)}, file)
    assert "\x1b" not in refused(file)
    torch.save({"strange.weight": torch.zeros(1)}, file)
    assert "of no family that is known (first keys: strange.weight)" in refused(file)


def test_slips_around_an_import_are_named(file: Path) -> None:
    bare = typed("segtrain", f"import={file}")
    assert bare.code == 2
    assert "import=FILE dataset=NAME" in bare.err
    assert (
        "import=: stands alone; leave out -m"
        in typed("segtrain", "-m", f"import={file}", *SHAPES).err
    )
    assert "import=FILE" in typed("segtrain", "import=", *SHAPES).err
    assert "table=all" in typed("segtrain", f"import={file}", "table=all", *SHAPES).err
    missing = typed("segtrain", f"import={file}x", *SHAPES)
    assert "theirs.pthx: no weights can be read" in missing.err


def test_one_fitting_tensor_does_not_start_a_training_from_scratch(file: Path) -> None:
    shutil.rmtree(file.parent / "none", ignore_errors=True)
    torch.save(resnet18("net."), file)
    ended = typed(
        "segtrain",
        "model=fcn_resnet50",
        "model.backbone=resnet18",
        "model.weights=null",
        *SHAPES,
        f"train.init={file}",
        f"hydra.run.dir={file.parent / 'none'}",
    )
    assert ended.code == 2
    assert "none of the 120 loaded tensors fits" in ended.err
    assert not (file.parent / "none").exists()
