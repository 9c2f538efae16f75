"""`segtrain recipes` lists what was published; a run begins with the line of its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import voc_part

from segtrain.commands import main
from segtrain.config import recipes
from segtrain.errors import UserError


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    main.run(["recipes", *words])
    return capsys.readouterr().out.splitlines()


def test_all_recipes_are_listed_with_number_cost_and_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title, *lines = listed(capsys)
    assert title.split() == ["recipe", "paper", "ours", "steps", "batch", "GPUs", "command"]
    assert [line.split()[0] for line in lines] == recipes.names()
    (pspnet,) = [line for line in lines if line.startswith("pspnet101_voc ")]
    assert "79.07 mIoU" in pspnet
    assert " 33,050 " in pspnet
    assert pspnet.endswith("segtrain model=pspnet dataset=voc")
    (staged,) = [line for line in lines if line.startswith("fcn16s_voc ")]
    assert staged.endswith("segtrain experiment=fcn16s_voc")


def test_they_are_chosen_by_model_and_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    names = [line.split()[0] for line in listed(capsys, "model=parsenet")[1:]]
    assert names == ["parsenet_context", "parsenet_voc"]
    (line,) = listed(capsys, "model=parsenet", "dataset=cityscapes")[1:]  # the nearest network's
    assert line.startswith("deeplab_r101_cityscapes ")
    assert line.endswith("segtrain model=parsenet dataset=cityscapes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=pspnt"], "model=pspnt: no such model.*Did you mean `pspnet`"),
        (["model=unet", "dataset=voc"], "no recipe was published for it"),
        (["steps=3"], "takes model=NAME and dataset=NAME"),
        (["pspnet"], "arguments are written key=value"),
    ],
)
def test_what_is_not_there_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main.run(["recipes", *words])


@pytest.mark.slow
def test_the_first_line_of_a_real_run_is_its_recipe(tmp_path: Path, data_root: Path) -> None:
    root = voc_part(data_root / "voc2012/VOCdevkit", tmp_path / "VOC2012", 4, 2)
    folder = tmp_path / "run"
    main.run(
        [
            "model=deeplabv3_mobilenet",
            "dataset=voc",
            f"dataset.root={root}",
            "dataset.train_split=train",
            "dataset.crop=[65,65]",
            "inference.pad=null",
            "model.weights=null",
            "model.norm=group",
            "train.batch_size=2",
            "train.steps=1",
            "train.verify=false",
            "train.device=cpu",
            "log.progress=false",
            f"hydra.run.dir={folder}",
        ]
    )
    first = (folder / "train.log").read_text().splitlines()[0]
    assert "recipe deeplabv3_r101_voc, published 77.21 mIoU; here another network" in first
    assert "model.backbone=mobilenet_v2 (there resnet101)" in first
    assert "train.batch_size=2 (there 16)" in first
    assert first.endswith("77.21 is not this run's number")
