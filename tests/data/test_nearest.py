"""What is there in place of a file or folder that is not is named with the way out.

Members of the names: a kind that is not read, case, zeros, spaces, Unicode, an end, a beginning, an
end replaced, a wrong and a needless suffix, a sub-folder, two files of one stem, nothing near. Of
the lists: padded ids, columns, quotes, comments, UTF-16, `Train.TXT`, an empty one. Of the folders:
other words, another case, flat ones, other splits, images and masks swapped or in one folder.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.benchmarks.predictions import find_all
from segtrain.config import parts
from segtrain.datasets.cityscapes import Cityscapes
from segtrain.datasets.folder import Folder
from segtrain.datasets.voc import VOC
from segtrain.engine.parts import check_labelled
from segtrain.errors import DataError, UserError

NAMES = ("1", "2", "3", "4")


def files(folder: Path, form: str, names: Iterable[str] = NAMES) -> None:
    """Small pictures named by `form`; what is no picture holds a byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / form.format(name)
        if path.suffix in (".png", ".jpg", ".bmp"):
            Image.new("L", (4, 4)).save(path)
        else:
            path.write_bytes(b"x")


def folder(root: Path, split: str = "train", **arguments: Any) -> Folder:
    return Folder(str(root), split, labels=["ground", "thing"], **arguments)


SAME = [
    ("{}.jpg", "{}.gif", {}, "as .gif, which is not read (`1.gif` for `1`); convert it"),
    ("{}.jpg", "{}.npy", {}, "as .npy, which is not read (`1.npy` for `1`); convert it"),
    (
        "A{}.jpg",
        "a{}.png",
        {},
        "with other upper and lower case (`a1.png` for `A1`); name both alike",
    ),
    (
        "{}.jpg",
        "00{}.png",
        {},
        "with other zeros before numbers (`001.png` for `1`); name both alike",
    ),
    ("{}.jpg", "{} .png", {}, "with other spaces (`1 .png` for `1`); name both alike"),
    (
        "{}.jpg",
        "mask_{}.png",
        {},
        "with `mask_` at the beginning (`mask_1.png` for `1`); name both alike",
    ),
    (
        "img{}.jpg",
        "mask{}.png",
        {},
        "with `mask` in place of `img` at the beginning (`mask1.png` for `img1`); name both alike",
    ),
    (
        "{}_sat.jpg",
        "{}_mask.png",
        {},
        "with `_mask` in place of `_sat` at the end (`1_mask.png` for `1_sat`); set "
        "dataset.image_suffix=_sat dataset.mask_suffix=_mask",
    ),
    (
        "{}.jpg",
        "{}_mask.png",
        {},
        "with `_mask` at the end (`1_mask.png` for `1`); set dataset.mask_suffix=_mask",
    ),
    (
        "{}.jpg",
        "{}_mask.png",
        {"mask_suffix": "_msk"},
        "with `_mask` in place of `_msk` at the end (`1_mask.png` for `1_msk`); "
        "set dataset.mask_suffix=_mask",
    ),
    (
        "{}.jpg",
        "{}.png",
        {"mask_suffix": "_msk"},
        "without `_msk` at the end (`1.png` for `1_msk`); leave dataset.mask_suffix out",
    ),
    (
        "a {}.jpg",
        "a_{}.png",
        {},
        "with other spaces, dashes or underscores (`a_1.png` for `a 1`); name both alike",
    ),
    ("{}.jpg", "day/{}.png", {}, "in a sub-folder (`day/1.png` for `1`); move it up"),
]


@pytest.mark.parametrize(("images", "masks", "arguments", "said"), SAME)
def test_what_all_names_differ_in_is_said_once(
    tmp_path: Path, images: str, masks: str, arguments: dict[str, Any], said: str
) -> None:
    files(tmp_path / "images/train", images)
    (tmp_path / "masks/train/day").mkdir(parents=True)
    files(tmp_path / "masks/train", masks)
    data = folder(tmp_path, **arguments)
    assert data.ids == []
    assert data.problems == [
        f"{tmp_path}/masks/train: 4 of 4 images have no mask of their name; found only {said}"
    ]


@pytest.mark.parametrize(("images", "masks", "arguments", "said"), SAME)
def test_lists_say_so_too(
    tmp_path: Path, images: str, masks: str, arguments: dict[str, Any], said: str
) -> None:
    files(tmp_path / "images", images)
    (tmp_path / "masks/day").mkdir(parents=True)
    files(tmp_path / "masks", masks)
    (tmp_path / "lists").mkdir()
    ids = [images.format(name).removesuffix(".jpg") for name in NAMES]
    (tmp_path / "lists/train.txt").write_text("\n".join(ids))
    (problem,) = folder(tmp_path, lists="lists", **arguments).problems
    said = said.replace("_msk`)", "`)")  # the example is named by its id
    both = "set dataset.image_suffix=_sat dataset.mask_suffix=_mask"
    said = said.replace(both, "name both alike")  # ids of a list are whole names
    assert problem == f"{tmp_path}/masks: 4 of 4 listed ids are not there; found only {said}"


def test_single_names_have_a_line_each_and_those_with_nothing_near_stay_bare(
    tmp_path: Path,
) -> None:
    files(tmp_path / "images/train", "{}.jpg", [*NAMES, "a", "10", "left"])
    files(tmp_path / "masks/train", "{}.png", ["1", "2", "A", "100", "right"])
    files(tmp_path / "masks/train", "{}.npy", ["3"])
    place = f"{tmp_path}/masks/train"
    assert folder(tmp_path).problems == [
        f"{tmp_path}/images/train/10.jpg: has no partner {place}/10.*",
        f"{tmp_path}/images/train/3.jpg: has no partner {place}/3.*; found only as .npy, which is "
        "not read (`3.npy`); convert it",
        f"{tmp_path}/images/train/4.jpg: has no partner {place}/4.*",
        f"{tmp_path}/images/train/a.jpg: has no partner {place}/a.*; found only with other upper "
        "and lower case (`A.png`); name both alike",
        f"{tmp_path}/images/train/left.jpg: has no partner {place}/left.*",
        f"{place}/100.png: has no partner {tmp_path}/images/train/100.*",
        f"{place}/right.png: has no partner {tmp_path}/images/train/right.*",
    ]


def test_the_two_forms_of_unicode_are_one_name(tmp_path: Path) -> None:
    composed = "caf\u00e9"
    files(tmp_path / "images", "{}.jpg", [unicodedata.normalize("NFD", composed)])
    files(tmp_path / "masks", "{}.png", [composed])
    (tmp_path / "lists").mkdir()
    for form in ("NFC", "NFD"):
        (tmp_path / "lists/train.txt").write_text(unicodedata.normalize(form, composed))
        data = folder(tmp_path, lists="lists")
        assert (data.ids, data.problems) == ([composed], [])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_two_forms_of_unicode_are_one_prediction(tmp_path: Path, form: str) -> None:
    ids = ["caf\u00e9", "a/\u00fc", "b/\u00fc"]  # of the last two only the folder tells which
    for name in ids:
        written = unicodedata.normalize(form, name)
        files((tmp_path / written).parent, "{}.png", [Path(written).name])
    found = find_all(tmp_path, ids, "val")
    assert found == {name: tmp_path / unicodedata.normalize(form, f"{name}.png") for name in ids}
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", ids[0])
    assert find_all(tmp_path, [other], "val") == {other: found[ids[0]]}


def test_letters_of_another_form_of_unicode_are_named_as_such(tmp_path: Path) -> None:
    files(tmp_path, "{}.png", ["\uff11"])  # a digit as wide as a letter of Chinese
    said = r"found only with another form of Unicode \(`\uff11\.png`\); name both alike"
    with pytest.raises(DataError, match=said):
        find_all(tmp_path, ["1"], "val")


def test_two_files_of_one_listed_stem_are_a_problem(tmp_path: Path) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "masks", "{}.png")
    files(tmp_path / "masks", "{}.bmp", ["1", "4"])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("1\n2\n")
    data = folder(tmp_path, lists="lists")
    assert data.problems == [  # 4 is not listed
        f"{tmp_path}/masks/1.png: has the same name as {tmp_path}/masks/1.bmp; keep one of them"
    ]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (b"# the first\n\"1\",\n 2 \n\n'3'\n#\n4;\n", ["1", "2", "3", "4"]),
        ("1\r\n4\r\n".encode("utf-16"), ["1", "4"]),
        (b"\xef\xbb\xbf3\n", ["3"]),
        (b"\n \n", []),
    ],
)
def test_a_list_that_somebody_wrote_is_read(tmp_path: Path, text: bytes, ids: list[str]) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "masks", "{}.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/Train.TXT").write_bytes(text)
    data = folder(tmp_path, "Train", lists="lists")
    assert (data.ids, data.problems) == (ids, [])
    said = r"no split `train`; there is Train .*Did you mean `Train`\? Set dataset.train_split=Trai"
    with pytest.raises(UserError, match=said):
        folder(tmp_path, lists="lists")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.jpg 1.png\n2.jpg 2.png", "list one id a line, without other columns"),
        ("1 1\n2 -1", "list one id a line, without other columns"),
        ("01\n02", "found only with other zeros before numbers (`1.jpg`); name both alike"),
    ],
)
def test_a_list_that_cannot_be_read_says_what_it_holds(
    tmp_path: Path, text: str, said: str
) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "masks", "{}.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text(text)
    problem, _ = folder(tmp_path, lists="lists").problems
    assert problem.endswith(f"listed, but not there; {said}")
    (tmp_path / "lists/train.txt").write_bytes("1\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"train\.txt: the list of ids is no UTF-8 text"):
        folder(tmp_path, lists="lists")


def test_an_empty_list_is_an_empty_split_which_nobody_trains_on(tmp_path: Path) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "masks", "{}.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("1\n")
    (tmp_path / "lists/val.txt").write_text("")
    train = folder(tmp_path, lists="lists")
    val = folder(tmp_path, "val", lists="lists")
    assert (val.ids, val.problems) == ([], [])
    splits = {"train_split": "train", "val_split": "val", "split": None, "cache": None}
    keys = parts.dataset_keys({"_target_": "x", **splits})
    check_labelled(keys, train, val)
    with pytest.raises(DataError, match="train"):
        check_labelled(keys, val, train)


FOLDERS = [
    ("Images/train", "Masks/train", "set dataset.images=Images dataset.masks=Masks"),
    ("image/train", "mask/train", "set dataset.images=image dataset.masks=mask"),
    ("train/img", "train/gt", "set dataset.images=img dataset.masks=gt"),
    (
        "JPEGImages",
        "SegmentationClass",
        "set dataset.images=JPEGImages dataset.masks=SegmentationClass dataset.val_share=0.2",
    ),
    ("images", "masks", "set dataset.val_share=0.2"),
    ("images/train", "Masks/train", "masks/train: no such folder; set dataset.masks=Masks"),
    ("images/train", "masks/training", "`training` is there in place of `train`"),
    ("images/Train", "masks/Train", "there is Train .* Set dataset.train_split=Train"),
    ("images/training", "masks/training", "Did you mean `training`. Set dataset.train_split=train"),
    ("images/train/day", "masks/train/Day", "`Day` is there in place of `day`"),
    ("other", "things", "holds other, things"),
]


@pytest.mark.parametrize(("images", "masks", "said"), FOLDERS)
def test_folders_of_other_names_are_named_with_the_settings(
    tmp_path: Path, images: str, masks: str, said: str
) -> None:
    files(tmp_path / images, "{}.jpg")
    files(tmp_path / masks, "{}.png")
    with pytest.raises((DataError, UserError), match=said):
        folder(tmp_path)


def test_lists_of_a_flat_folder_are_found(tmp_path: Path) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "masks", "{}.png")
    files(tmp_path / "splits", "{}.txt", ["train", "val"])
    with pytest.raises(UserError, match=r"no split `train`.*; set dataset.lists=splits$"):
        folder(tmp_path)
    with pytest.raises(DataError, match=r"lists: no such folder; set dataset.lists=splits$"):
        folder(tmp_path, lists="lists")


@pytest.mark.parametrize("arguments", [{"val_share": 0.5}, {"lists": "lists"}])
def test_images_and_masks_in_one_folder_or_swapped_are_told(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    files(tmp_path / "images", "{}.jpg")
    files(tmp_path / "images", "{}_mask.png")
    files(tmp_path / "lists", "{}.txt", ["train"])
    with pytest.raises(DataError, match=r"images: .*masks; set dataset.mask_suffix=_mask, or give"):
        folder(tmp_path, masks="images", **arguments)
    files(tmp_path / "pngs", "{}.png")
    files(tmp_path / "jpgs", "{}.jpg")
    (tmp_path / "lists/train.txt").write_text("1\n")
    said = r"jpgs: holds only JPEG, and .*pngs only PNG: are the folders of images and masks swap"
    with pytest.raises(DataError, match=said):
        folder(tmp_path, images="pngs", masks="jpgs", **arguments)


def test_benchmarks_of_another_case_are_named(tmp_path: Path) -> None:
    files(tmp_path / "leftImg8bit/train/ulm", "ulm_{}_leftImg8bit.png")
    files(tmp_path / "gtfine/train/ulm", "ulm_{}_gtFine_labelIds.png")
    with pytest.raises(DataError, match="gtFine/train: no such folder; `gtfine` is there in place"):
        Cityscapes(str(tmp_path), "train")
    files(tmp_path / "ImageSets/Segmentation", "{}.txt", ["Val"])
    with pytest.raises(DataError, match=r"val.txt: missing; `Val` is there in place of `val`$"):
        VOC(str(tmp_path), "val")


def test_a_prediction_of_another_name_is_named(tmp_path: Path) -> None:
    files(tmp_path, "00{}.png")
    said = "1.png: no prediction for this image; 4 of the 4 images of val have none; found only "
    with pytest.raises(DataError) as caught:
        find_all(tmp_path, NAMES, "val")
    assert str(caught.value).endswith(
        f"{said}with other zeros before numbers (`001.png`); name both alike"
    )
    files(tmp_path / "arrays", "{}.npy")
    with pytest.raises(DataError, match=r"found only as \.npy, which is not read \(`1\.npy`\)"):
        find_all(tmp_path / "arrays", NAMES, "val")
