"""Maps that number the objects, in Penn-Fudan's layout, as objects and as classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commandline import done, save, trained

from segtrain.data.verify import notes, verify_labels
from segtrain.datasets.instance_maps import InstanceMaps, InstanceMapsSemantic
from segtrain.errors import DataError, UserError

MAP = np.array([[0, 1, 1, 0], [2, 2, 0, 0], [0, 0, 0, 7]], np.uint8)


def penn_fudan(root: Path, count: int = 12, side: int = 1) -> dict[str, object]:
    """The release's folders; returns the arguments that read them."""
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (3 * side, 4 * side, 3), np.uint8)
        save(root / f"PNGImages/FudanPed{number:05d}.png", pixels)
        save(root / f"PedMasks/FudanPed{number:05d}_mask.png", MAP.repeat(side, 0).repeat(side, 1))
    return {"images": "PNGImages", "masks": "PedMasks", "mask_suffix": "_mask", "name": "person"}


def test_objects_and_classes_of_one_folder(tmp_path: Path) -> None:
    words = penn_fudan(tmp_path)
    objects = InstanceMaps(str(tmp_path), "train", val_share=0.3, **words)  # type: ignore[arg-type]
    found = objects.instances(0)
    assert found.boxes.tolist() == [[1, 0, 3, 1], [0, 1, 2, 2], [3, 2, 4, 3]]
    assert found.labels.tolist() == [0, 0, 0]
    assert found.masks.sum((1, 2)).tolist() == [2, 2, 1]
    assert objects.labels.names == ("person",)
    classes = InstanceMapsSemantic(str(tmp_path), "train", val_share=0.3, **words)  # type: ignore[arg-type]
    assert classes.ids == objects.ids
    assert classes.mask(0).tolist() == (MAP > 0).astype(int).tolist()
    assert classes.labels.names == ("background", "person")
    val = InstanceMaps(str(tmp_path), "val", val_share=0.3, **words)  # type: ignore[arg-type]
    assert len({*val.ids, *objects.ids}) == len(val) + len(objects) == 12


def test_splits_are_folders_where_nothing_is_divided(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.png", np.zeros((3, 4, 3), np.uint8))
    save(tmp_path / "masks/train/a.png", MAP)
    assert len(InstanceMaps(str(tmp_path), "train")) == 1
    with pytest.raises(UserError, match="no split `val`"):
        InstanceMaps(str(tmp_path), "val")
    save(tmp_path / "masks/train/a.png", MAP[:2])
    with pytest.raises(DataError, match=r"a\.png: mask of 4 x 2 pixels, but its image"):
        InstanceMaps(str(tmp_path), "train")[0]


def white(root: Path, *maps: list[int]) -> dict[str, str]:
    for number, values in enumerate(maps):
        save(root / f"images/train/{number}.png", np.zeros((1, len(values), 3), np.uint8))
        save(root / f"masks/train/{number}.png", np.array([values], np.uint8))
    return {"root": str(root), "split": "train"}


def test_a_white_border_is_noted_and_left_out_where_void_says_so(tmp_path: Path) -> None:
    words = white(tmp_path, [0, 1, 255, 2], [0, 1, 1, 0])
    border = "the value 255 counts as an object beside others (a border? dataset.void=255 leaves "
    for kind in (InstanceMaps, InstanceMapsSemantic):
        (line,) = notes(kind(**words), verify_labels(kind(**words)))
        assert line == f"{border}it out): 1 of 2 images ({tmp_path}/masks/train/0.png)"
        known = kind(**words, void=255)
        assert notes(known, verify_labels(known)) == []
        with pytest.raises(UserError, match=r"dataset\.void=0: a value of the maps, from 1 on"):
            kind(**words, void=0)
    assert InstanceMaps(**words).instances(0).masks.sum((1, 2)).tolist() == [1, 1, 1]
    known = InstanceMaps(**words, void=255).instances(0)
    assert known.masks[:, 0].int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert InstanceMapsSemantic(**words).mask(0).tolist() == [[0, 1, 1, 1]]
    assert InstanceMapsSemantic(**words, void=255).mask(0).tolist() == [[0, 1, 255, 1]]


def test_a_map_of_0_and_255_is_noted_as_one_object(tmp_path: Path) -> None:
    words = white(tmp_path, [0, 255, 0, 255])
    data = InstanceMaps(**words)
    (line,) = notes(data, verify_labels(data))
    assert line.startswith("all that is marked has the value 255 and counts as one object: 1 of 1 ")
    classes = InstanceMapsSemantic(**words)  # a class needs no objects
    assert notes(classes, verify_labels(classes)) == []


def test_the_255th_object_of_many_is_an_object(tmp_path: Path) -> None:
    data = InstanceMaps(**white(tmp_path, list(range(256))))
    assert notes(data, verify_labels(data)) == []
    assert len(data.instances(0).labels) == 255


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "model"),
    [("instance_maps", "mask_rcnn_r18"), ("instance_maps_semantic", "unet_32")],
)
def test_a_person_verifies_and_trains_on_pedestrians(
    tmp_path: Path, dataset: str, model: str
) -> None:
    penn_fudan(tmp_path / "d", side=16)
    words = [
        f"dataset={dataset}",
        f"dataset.root={tmp_path / 'd'}",
        "dataset.images=PNGImages",
        "dataset.masks=PedMasks",
        "dataset.mask_suffix=_mask",
        "dataset.name=person",
        "dataset.val_share=0.3",
    ]
    assert "0 problems" in done("segdata", "verify", *words)
    run = trained(
        tmp_path / "run",
        *words,
        f"model={model}",
        "dataset.crop=[64,64]",
        "train.steps=1",
        "train.batch_size=2",
        "train.device=cpu",
        "writer=[]",
    )
    assert (run / "summary.json").is_file()


@pytest.mark.parametrize("kind", [InstanceMaps, InstanceMapsSemantic])
def test_each_message_leads_to_the_next_right_word(
    tmp_path: Path, kind: type[InstanceMaps] | type[InstanceMapsSemantic]
) -> None:
    penn_fudan(tmp_path)
    folders = {"images": "PNGImages", "masks": "PedMasks"}
    with pytest.raises(UserError, match=r"set dataset\.images=PNGImages dataset\.masks=PedMasks"):
        kind(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"no PNGImages/train .*; set dataset\.val_share=0\.2 \("):
        kind(str(tmp_path), "train", **folders)
    bare = kind(str(tmp_path), "train", val_share=0.2, **folders)
    assert len(bare.problems) == 1
    assert bare.problems[0].endswith("set dataset.mask_suffix=_mask")
    assert kind(str(tmp_path), "train", val_share=0.2, mask_suffix="_mask", **folders).ids
