"""`segdata verify` on copies of the real samples.

Ten kinds of planted faults in every set, one line each, nothing else.

A copy is made of links, and a fault replaces the link by a file, so the samples stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import (
    SETS,
    Copy,
    Fault,
    camvid,
    cityscapes,
    coco_stuff,
    coco_tree,
    context,
    context_459,
    empty_image,
    isbi,
    isbi_paired,
    link,
    no_classes,
    no_image,
    no_mask,
    plant_in_coco,
    png,
    put,
    stored,
    train_ids,
    voc,
    voc_list,
    voc_sbd,
)
from PIL import Image

from segtrain.commands import data as data_module
from segtrain.commands import exit_codes


@dataclass
class Ended:
    """How a command ended: exit code, stdout, and the lines of the report.

    `last` is the last line of stderr, which counts them.
    """

    code: int
    out: str
    lines: list[str]
    last: str


Run = Callable[[Sequence[str]], Ended]


@pytest.fixture
def verify(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """`segdata verify` in this process."""
    monkeypatch.chdir(tmp_path)

    def call(arguments: Sequence[str]) -> Ended:
        capsys.readouterr()
        code = 0
        try:
            exit_codes.run_command(
                "segdata",
                data_module.run,
                ["verify", *arguments, "output=report.txt", "log.progress=false"],
            )
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capsys.readouterr()
        *above, last = err.splitlines() or [""]
        lines = Path("report.txt").read_text().splitlines()
        assert {line for line in above if "more of this kind" not in line} <= set(lines)
        return Ended(code, out, lines, last)

    return call


def assert_found(ended: Ended, expected: Sequence[str], splits: str) -> None:
    """Each expected start begins exactly one line, and there is no other line."""
    count = {start: sum(line.startswith(start) for line in ended.lines) for start in expected}
    assert {start: n for start, n in count.items() if n != 1} == {}, ended.lines
    assert [line for line in ended.lines if not line.startswith(tuple(expected))] == []
    assert len(ended.lines) == len(expected) == len(set(expected))
    assert ended.code == 65
    count = f"{len(expected)} problem{'s' * (len(expected) > 1)}"
    assert ended.last in (
        f"segdata: {count} in {splits}, listed above",
        f"segdata: {count} in {splits}, the first of each kind above; all stand in report.txt",
    )


@pytest.mark.parametrize(("make", "faults"), SETS, ids=[make.__name__ for make, _ in SETS])
def test_every_planted_file_is_named_in_one_line_and_nothing_else(
    verify: Run,
    data_root: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], Copy],
    faults: list[Fault],
) -> None:
    made = make(data_root, tmp_path / "copy")
    assert len(faults) <= len(made.ids)  # one fault a sample
    expected = [fault(made, name) for fault, name in zip(faults, made.ids, strict=False)]
    ended = verify(made.arguments)
    chosen = [
        a.partition("=")[2]
        for a in made.arguments
        if a.startswith(("dataset.split=", "dataset.train_split="))
    ]
    first = chosen[0] if chosen else "train2017" if make is coco_stuff else "train"
    other = {"voc": ", val", "voc_instance": ", val_instances", "coco_stuff": ", val2017"}.get(
        make.__name__, ""
    )
    assert_found(ended, expected, first + other)
    lost = len({no_image, no_mask, no_classes} & set(faults))
    said = [line for line in ended.out.splitlines() if "problems" in line]
    assert (
        said[0] == f"{first}: {len(made.ids) + made.others - lost} images, {len(expected)} problems"
    )
    assert [line.split()[-2:] for line in said[1:]] == ([["0", "problems"]] if other else [])


# ---------------------------------------------------------------------- COCO's annotation files


def coco_sets(root: Path) -> dict[str, list[str]]:
    """What to type for each set that reads annotation files."""
    made = {
        name: [f"dataset={name}", f"dataset.root={root}"]
        for name in ("coco_instance", "coco_proposal", "coco_voc")
    }
    own = ["dataset=coco_json"]
    for part, split in (("", "train2017"), ("val_", "val2017")):
        own += [
            f"dataset.{part}annotations={root}/annotations/instances_{split}.json",
            f"dataset.{part}images={root}/{split}",
        ]
    return made | {"coco_json": own}


# The files of coco_instance and camvid in other words.
LONG = ("coco_proposal", "coco_json", "camvid test")


def quick_but_long(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, those of LONG slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


def test_at_least_ten_faults_are_planted_in_every_set() -> None:
    assert all(len(faults) >= 10 for _, faults in SETS)
    assert sum(len(faults) for _, faults in SETS) + 24 * len(coco_sets(Path())) == 142 + 96


@pytest.mark.parametrize("name", quick_but_long(coco_sets(Path())))
def test_every_planted_annotation_and_image_of_coco_is_named_in_one_line_and_nothing_else(
    verify: Run, data_root: Path, tmp_path: Path, name: str
) -> None:
    root = coco_tree(data_root, tmp_path / "copy")
    expected = plant_in_coco(root)
    assert len(expected) == 24
    split = "train" if name == "coco_json" else "train2017"
    assert_found(verify([*coco_sets(root)[name], f"dataset.split={split}"]), expected, split)


def test_a_cut_annotation_file_hides_no_fault_of_the_other_split(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    root = coco_tree(data_root, tmp_path / "copy")
    path = root / "annotations/instances_train2017.json"
    put(path, path.read_bytes()[:200_000])
    listed = {
        i["file_name"]
        for i in json.loads((root / "annotations/instances_val2017.json").read_text())["images"]
    }
    image = root / "val2017" / min(listed)
    put(image, b"")
    expected = [f"{path}: not whole, or no JSON: ", f"{image}: is empty (0 bytes)"]
    assert_found(verify(coco_sets(root)["coco_instance"]), expected, "train2017, val2017")


def test_a_missing_list_hides_no_fault_of_the_other_split(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    made = voc(data_root, tmp_path / "copy")
    assert made.listed is not None
    made.listed.unlink()
    name = voc_list(made.root, "val")[1][0]
    expected = [
        f"{made.listed}: missing; set dataset.root= to the folder VOCdevkit",
        empty_image(made, name),
    ]
    assert_found(verify(made.arguments), expected, "train, val")


# ---------------------------------------------------------------------- clean samples


def clean(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """What to type for each sample as it is, and the images that are then counted."""
    context_root = f"dataset.root={data}/pascal_context"
    cities = f"dataset.root={data}/cityscapes"
    voc_root = f"dataset.root={data}/voc2012/VOCdevkit"
    objects = ["dataset.train_split=train_instances", "dataset.val_split=val_instances"]
    coco = {name: (typed, ["128", "79"]) for name, typed in coco_sets(data / "coco").items()}
    coco["coco_voc"] = (coco["coco_voc"][0], ["94", "79"])
    return coco | {
        "camvid": (["dataset=camvid", f"dataset.root={data}/camvid"], ["367", "101"]),
        "camvid test": (
            ["dataset=camvid", f"dataset.root={data}/camvid", "dataset.split=test"],
            ["233"],
        ),
        "voc": (["dataset=voc", voc_root], ["46", "67"]),
        "voc train_aug": (["dataset=voc", voc_root, "dataset.train_split=train_aug"], ["65", "67"]),
        "voc_instance": (["dataset=voc_instance", voc_root, *objects], ["24", "20"]),
        "context": (["dataset=context", context_root, "dataset.split=val"], ["4"]),
        "context 60": (
            ["dataset=context", context_root, "dataset.split=val", "dataset.classes=60"],
            ["4"],
        ),
        "cityscapes": (["dataset=cityscapes", cities, "dataset.split=train"], ["6"]),
        "cityscapes_instance": (
            ["dataset=cityscapes_instance", cities, "dataset.split=train"],
            ["6"],
        ),
        "coco_stuff": (["dataset=coco_stuff", f"dataset.root={data}/coco"], ["13", "8"]),
    }


@pytest.mark.parametrize("name", quick_but_long(clean(Path())))
def test_nothing_is_reported_of_the_sample_as_it_is(
    verify: Run, data_root: Path, name: str
) -> None:
    arguments, images = clean(data_root)[name]
    ended = verify(arguments)
    assert (ended.code, ended.lines, ended.last) == (0, [], "")
    said = [line.partition(": ")[2] for line in ended.out.splitlines() if "problems" in line]
    assert said == [f"{count} images, 0 problems" for count in images]


@pytest.mark.parametrize("make", [voc_sbd, context_459, isbi, isbi_paired])
def test_nothing_is_reported_of_a_clean_copy_in_another_form(
    verify: Run, data_root: Path, tmp_path: Path, make: Callable[[Path, Path], Copy]
) -> None:
    ended = verify(make(data_root, tmp_path / "copy").arguments)
    assert (ended.code, ended.lines, ended.last) == (0, [], "")
    count = {"voc_sbd": 65, "context_459": 14}.get(make.__name__, 30)
    assert f": {count} images, 0 problems\n" in ended.out


# ------------------------------------------------------------ hints for a whole set in another form

BINARY = (
    "Binary 0/255 masks? Map 255 to a class: dataset=folder "
    "'dataset.labels=[{id: 0, name: background}, {id: 255, name: object}]'"
)
COLOURS = (
    "mode RGB, but a mask is 1 channel of class values; take one channel where all are equal, "
    "else put a class value for each colour"
)
TRAIN_IDS = (
    "segtrain reads labelIds (0-33) as they come in the Cityscapes archives and makes trainIds "
    "itself; a file that holds 255 holds trainIds: put the original back. For classes of your own "
    "take dataset=folder dataset.images=leftImg8bit dataset.masks=gtFine "
    "dataset.image_suffix=_leftImg8bit dataset.mask_suffix=_gtFine_labelIds"
)
LABEL_IDS = (
    "Raw Cityscapes labelIds? dataset=cityscapes reads them, "
    "and dataset=folder dataset.classes=cityscapes"
)


def restored(made: Copy, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Every mask of a split in another form."""
    for name in made.ids:
        put(made.mask(name), png(change(stored(made.mask(name)))))


def two_valued(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == 0, 0, 255).astype(np.uint8)


def test_masks_of_0_and_255_are_named_with_the_labels_to_set(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    """Where 255 is ignored they are legal, and only all of them together say what they are: one
    line a split.
    """
    made = voc(data_root, tmp_path / "voc")
    restored(made, two_valued)
    first = made.mask(made.ids[0])
    words = "this and every other checked mask holds only `background` and ignored pixels"
    line = f"{first}: {words}. {BINARY}"
    assert_found(verify(made.arguments), [line], "train, val")
    made = context(data_root, tmp_path / "context")  # where 0 is ignored too, they leave nothing
    restored(made, two_valued)
    line = (
        f"{made.mask('c00')}: this and every other checked mask holds only ignored pixels. {BINARY}"
    )
    assert_found(verify(made.arguments), [line], "val")
    made = camvid(data_root, tmp_path / "camvid")  # 255 is illegal: one line a file
    made = replace(made, ids=made.ids[:5])
    restored(made, two_valued)
    lines = verify(made.arguments).lines
    assert [line.partition(": ")[0] for line in lines] == [
        str(made.mask(name)) for name in made.ids
    ]
    assert all(
        "camvid has classes 0-10 and 11 for ignored. " in line and line.endswith(BINARY)
        for line in lines
    )


@pytest.mark.parametrize("ignored", [True, False])
def test_real_binary_masks_are_named_with_the_labels_to_set(
    verify: Run, data_root: Path, tmp_path: Path, ignored: bool
) -> None:
    """The EM slices hold 0 and 255.

    255 is a class there, and neither ignored nor a mistake for 1.
    """
    made = isbi(data_root, tmp_path / "copy")
    labels = "{id: 0, name: membrane}, {id: 1, name: cell}" + (
        ", {id: 255, ignore: true}" if ignored else ""
    )
    ended = verify([*made.arguments, f"dataset.labels=[{labels}]"])
    assert len(ended.lines) == (1 if ignored else 30)
    assert ended.lines[0].startswith(f"{made.mask('0')}: ")
    assert all(line.endswith(BINARY) for line in ended.lines)


def test_train_ids_in_place_of_label_ids_are_named_with_the_way_out(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    made = cityscapes(data_root, tmp_path / "copy")
    expected = [train_ids(made, name) for name in made.ids]
    ended = verify(made.arguments)
    assert_found(ended, expected, "train")
    assert all(line.endswith(TRAIN_IDS) for line in ended.lines)


def test_label_ids_in_place_of_train_ids_are_named_with_the_way_out(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    made = cityscapes(data_root, tmp_path / "copy")
    for name in made.ids[:6]:
        link(made.image(name), tmp_path / f"images/train/{name}.png")
        link(made.mask(name), tmp_path / f"masks/train/{name}.png")
    table = (
        ", ".join(f"{{id: {i}, name: class{i}}}" for i in range(19)) + ", {id: 255, ignore: true}"
    )
    arguments = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.split=train"]
    ended = verify([*arguments, f"dataset.labels=[{table}]"])
    assert_found(
        ended, [f"{tmp_path}/masks/train/{name}.png: mask value " for name in made.ids[:6]], "train"
    )
    assert all(line.endswith(LABEL_IDS) for line in ended.lines)
    ended = verify([*arguments, "dataset.classes=cityscapes"])  # the way out is one
    assert (ended.code, ended.lines, ended.last) == (0, [], "")


def test_masks_in_colour_are_named_with_the_way_out(
    verify: Run, data_root: Path, tmp_path: Path
) -> None:
    """In VOC's palette, as many tools write them."""
    made = voc(data_root, tmp_path / "copy")
    for name in made.ids:
        with Image.open(made.mask(name)) as image:
            content = png(np.array(image.convert("RGB")))
        put(made.mask(name), content)
    expected = [f"{made.mask(name)}: {COLOURS}" for name in made.ids]
    ended = verify(made.arguments)
    assert_found(ended, expected, "train, val")
    assert len(ended.lines) == 46
