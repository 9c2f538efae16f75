"""`segdata prepare`: what is fetched, what must be fetched by hand, how maps are converted."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from segtrain.benchmarks import cityscapes as cityscapes_module
from segtrain.benchmarks import coco as coco_module
from segtrain.benchmarks import context as context_module
from segtrain.benchmarks import download as download_module
from segtrain.benchmarks import prepare
from segtrain.benchmarks import voc as voc_module
from segtrain.benchmarks.archives import Archive
from segtrain.benchmarks.cityscapes import CITYSCAPES
from segtrain.benchmarks.coco import COCO, STUFF
from segtrain.benchmarks.context import CONTEXT, convert_to_59
from segtrain.benchmarks.voc import SBD, VOC2012, make_train_aug
from segtrain.config.schema import LogConf, RunConf
from segtrain.data.images import read_mask
from segtrain.datasets.context import Context
from segtrain.datasets.voc import VOC
from segtrain.errors import DataError, DiskError
from segtrain.visualization import picture_files

ALL = (VOC2012, SBD, *COCO, STUFF, *CITYSCAPES, *CONTEXT)


def run(target: str, root: Path, **settings: Any) -> RunConf:
    node = {"_target_": f"segtrain.datasets.{target}", "root": str(root), **settings}
    return RunConf(dataset=node, log=LogConf(progress=False))


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def made(archive: Archive, content: bytes) -> Archive:
    """The same archive with another content."""
    name = "md5" if len(archive.digest) == 32 else "sha256"
    return replace(
        archive, digest=hashlib.new(name, content).hexdigest() if archive.digest else "", size=None
    )


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in files
    }


COCO_FILES = [
    {"train2017/000000000009.jpg": b"9"},
    {"val2017/000000000139.jpg": b"139"},
    {
        f"annotations/{kind}_{split}2017.json": b"{}"
        for kind in ("instances", "captions")
        for split in ("train", "val")
    },
]


@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """COCO's archives in small; returns (URL, file name) of what is downloaded."""
    contents = [zipped(files) for files in COCO_FILES]
    archives = tuple(
        made(archive, content) for archive, content in zip(COCO, contents, strict=True)
    )
    monkeypatch.setattr(coco_module, "COCO", archives)
    calls: list[tuple[str, str]] = []

    def download(url: str, target: Path, sha256: str, size: int | None, progress: bool) -> None:
        calls.append((url, target.name))
        target.write_bytes(contents[[archive.url for archive in archives].index(url)])
        download_module.check(target, sha256, progress)

    monkeypatch.setattr(download_module, "download", download)
    return calls


# ---------------------------------------------------------------------- what is fetched


def test_every_file_that_is_fetched_has_a_hash_and_comes_over_https() -> None:
    for archive in ALL:
        assert archive.url.startswith("https://"), archive.name
        assert len(archive.digest) == 64 or archive.by_hand, archive.name
        assert set(archive.digest) <= set("0123456789abcdef"), archive.name
        assert len(archive.digest) in (0, 32, 64), archive.name
        assert archive.limit > 1.5 * (archive.size or 0), archive.name
    assert len({archive.digest for archive in ALL}) == len(ALL)


def test_the_voc_archives_are_those_of_torchvision() -> None:
    spec = importlib.util.find_spec("torchvision")  # read, not imported: that takes seconds
    assert spec is not None
    assert spec.origin is not None
    theirs = (Path(spec.origin).parent / "datasets" / "voc.py").read_text()
    for archive in (VOC2012, CONTEXT[0]):
        devkit, year = archive.inside.split("/")
        for value in (f'"{archive.url}"', f'"{archive.name}"', f'"{devkit}", "{year}"'):
            assert value in theirs
    assert f'"md5": "{CONTEXT[0].digest}"' in theirs


def test_coco_is_fetched_into_the_official_layout_once(
    coco: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "coco"
    conf = run("coco.CocoInstances", root)
    assert prepare.prepare(conf)
    bucket = "https://s3.amazonaws.com/images.cocodataset.org"
    assert coco == [
        (f"{bucket}/zips/train2017.zip", "train2017.zip"),
        (f"{bucket}/zips/val2017.zip", "val2017.zip"),
        (f"{bucket}/annotations/annotations_trainval2017.zip", "annotations_trainval2017.zip"),
    ]
    files = {name: content for group in COCO_FILES for name, content in group.items()}
    assert {
        name: content for name, (_, content) in state(root).items() if "downloads" not in name
    } == files
    said = capsys.readouterr().out
    assert f"{root}/train2017: there, 1 entries; the release has 118,287, remove the folder" in said
    assert f"{root}/downloads/train2017.zip: unpacked, no longer needed" in said
    before = state(root)
    assert prepare.prepare(conf)
    assert state(root) == before
    assert len(coco) == 3


def test_what_is_there_is_not_fetched_and_not_changed(
    coco: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "train2017").mkdir()  # a subset, kept on purpose
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_bytes(b"mine")
    assert prepare.prepare(run("coco.CocoProposals", tmp_path))
    assert [name for _, name in coco] == ["val2017.zip", "annotations_trainval2017.zip"]
    assert os.listdir(tmp_path / "train2017") == []
    assert (tmp_path / "annotations" / "instances_val2017.json").read_bytes() == b"mine"
    assert (tmp_path / "annotations" / "instances_train2017.json").read_bytes() == b"{}"


def test_a_disk_too_small_for_all_of_it_is_seen_first(
    coco: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_module, "COCO", COCO)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "val2017.zip.part").write_bytes(bytes(1000))
    monkeypatch.setattr(
        download_module.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(40 * 10**9)
    )
    need = 2 * (19_336_861_798 + 815_585_330 + 252_907_541) - 1000
    with pytest.raises(DiskError, match=f"{need:,} bytes are needed, but 40,000,000,000 are free"):
        prepare.prepare(run("coco.CocoInstances", tmp_path))
    assert coco == []


def test_an_archive_without_the_files_it_should_hold_is_refused(
    coco: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, annotations = coco_module.COCO
    monkeypatch.setattr(coco_module, "COCO", (replace(annotations, holds={"stuff.json": 1}),))
    with pytest.raises(
        DataError, match=r"annotations_trainval2017\.zip: does not hold stuff\.json"
    ):
        prepare.prepare(run("coco.CocoInstances", tmp_path))


def test_a_coco_file_of_ones_own_and_other_sets_need_nothing(
    coco: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.prepare(run("coco.CocoInstances", tmp_path, annotations="mine.json"))
    assert prepare.prepare(run("shapes.Shapes", tmp_path))
    assert coco == []
    assert os.listdir(tmp_path) == []
    assert (
        "segtrain.datasets.shapes.Shapes: nothing to fetch or to convert" in capsys.readouterr().out
    )


def test_voc_becomes_voc2012_whether_root_is_the_devkit_or_the_year(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = {
        "JPEGImages/a.jpg": b"a",
        "SegmentationClass/a.png": b"a",
        "ImageSets/Segmentation/trainval.txt": b"a\n",
    }
    content = tarred({f"VOCdevkit/VOC2012/{name}": data for name, data in inner.items()})
    monkeypatch.setattr(voc_module, "VOC2012", made(VOC2012, content))
    monkeypatch.setattr(
        download_module, "download", lambda url, target, *rest: target.write_bytes(content)
    )
    for number, below in enumerate(("", "VOC2012")):
        devkit = tmp_path / str(number)
        assert prepare.prepare(run("voc.VOC", devkit / below))
        present = {
            str(path.relative_to(devkit / "VOC2012")) for path in (devkit / "VOC2012").rglob("*.*")
        }
        assert set(inner) <= present
        assert not (devkit / "VOC2012" / "VOC2012").exists()


# ---------------------------------------------------------------------- what is fetched by hand


def test_coco_stuff_maps_are_told_and_unpacked_when_they_are_there(
    coco: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = run("coco_stuff.CocoStuff", tmp_path)
    assert not prepare.prepare(conf)
    said = capsys.readouterr().out
    archive = tmp_path / "downloads" / "stuffthingmaps_trainval2017.zip"
    assert "stuffthingmaps_trainval2017.zip: published without https" in said
    assert f"https://github.com/nightrome/cocostuff#downloads, put it at {archive}" in said
    archive.write_bytes(
        zipped({"train2017/000000000009.png": b"9", "val2017/000000000139.png": b"139"})
    )
    assert prepare.prepare(conf)
    assert (tmp_path / "stuffthingmaps" / "train2017" / "000000000009.png").read_bytes() == b"9"


def test_cityscapes_is_told_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gtFine" / "train" / "aachen").mkdir(parents=True)
    (tmp_path / "gtFine" / "val").mkdir()
    assert not prepare.prepare(run("cityscapes.Cityscapes", tmp_path))
    said = capsys.readouterr().out
    digest = "3ccff9ac1fa1d80a6a064407e589d747ed0657aac7dc495a4403ae1235a37525"
    assert f"leftImg8bit_trainvaltest.zip (sha256 {digest}): needs a free account" in said
    assert "Get it from https://www.cityscapes-dataset.com/downloads/, put it at" in said
    assert str(tmp_path / "downloads" / "leftImg8bit_trainvaltest.zip") in said
    assert "leftImg8bit/{train,val,test}/<city>/<city>_<seq>_<frame>_leftImg8bit.png" in said
    assert "missing now: leftImg8bit/train, leftImg8bit/val\n" in said
    assert "gtFine_trainvaltest" not in said
    assert f"{tmp_path}/gtFine/train: there, 1 entries" in said


def test_cityscapes_archives_put_in_place_are_checked_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [
        zipped(
            {f"{a.folder}/{split}/x/x.png": b"x" for split in ("train", "val")} | {"README": b"r"}
        )
        for a in CITYSCAPES
    ]
    (tmp_path / "downloads").mkdir()
    for archive, content in zip(CITYSCAPES, contents, strict=True):
        (tmp_path / "downloads" / archive.name).write_bytes(content)
    conf = run("cityscapes.Cityscapes", tmp_path)
    with pytest.raises(
        DataError, match=r"leftImg8bit_trainvaltest\.zip: its sha256 is .*, but 3ccff9ac"
    ):
        prepare.prepare(conf)
    monkeypatch.setattr(cityscapes_module, "CITYSCAPES", tuple(map(made, CITYSCAPES, contents)))
    assert prepare.prepare(conf)
    assert sorted(os.listdir(tmp_path)) == ["downloads", "gtFine", "leftImg8bit"]
    assert (tmp_path / "gtFine" / "val" / "x" / "x.png").read_bytes() == b"x"


def test_context_is_told_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not prepare.prepare(run("context.Context", tmp_path))
    said = capsys.readouterr().out
    for word in (
        "VOCtrainval_03-May-2010.tar (md5 da459979d0c395079b5c75ee67908abb): comes with terms of",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar, put it at",
        "trainval.tar.gz (md5 df034edb2c12aa7d33b42b20bb1796e3): comes with terms of use",
        "https://www.cs.stanford.edu/~roozbeh/pascal-context/, put it at",
        str(tmp_path / "downloads" / "trainval.tar.gz"),
        "59_context_labels/<id>.png",
        "missing now: JPEGImages, trainval\n",
    ):
        assert word in said


# ---------------------------------------------------------------------- conversions


def sbd_mat(path: Path, labels: np.ndarray) -> None:
    """cls/<id>.mat as in the release: the struct GTcls with three fields, the boundaries sparse."""
    edges = np.empty((20, 1), object)
    for index in range(20):
        edges[index, 0] = csc_matrix(np.zeros(labels.shape, bool))
    present = np.unique(labels[labels > 0]).reshape(-1, 1)
    content = {
        "Boundaries": edges,
        "Segmentation": labels.astype(np.uint8),
        "CategoriesPresent": present,
    }
    savemat(path, {"GTcls": content}, do_compression=True)


@pytest.fixture
def sbd(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """(SBD folder, VOC2012 folder, SBD's labels).

    voc1 is in both; val1 in SBD train and VOC val; s1 and s2 in SBD only.
    """
    base = tmp_path / "VOCdevkit" / "VOC2012"
    source = tmp_path / "benchmark_RELEASE" / "dataset"
    lists = base / "ImageSets" / "Segmentation"
    rng = np.random.default_rng(0)
    for folder in (lists, source / "cls", base / "JPEGImages"):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_voc1\n2007_voc2\n")
    (lists / "val.txt").write_text("2008_val1\n2008_val2\n")
    (lists / "trainval.txt").write_text("")
    (source / "train.txt").write_text("2008_s2\n2007_voc1\n2008_val1\n")
    (source / "val.txt").write_text("2008_s1\n")
    labels = {
        name: rng.integers(0, 21, (4, 5))
        for name in ("2007_voc1", "2008_val1", "2008_s1", "2008_s2")
    }
    for name, array in labels.items():
        sbd_mat(source / "cls" / f"{name}.mat", array)
    for name in ("2007_voc1", "2007_voc2", "2008_s1", "2008_s2"):
        picture_files.save(base / "JPEGImages" / f"{name}.jpg", np.zeros((4, 5, 3), np.uint8))
    for number, name in enumerate(("2007_voc1", "2007_voc2")):
        picture_files.save_labels(
            base / "SegmentationClass" / f"{name}.png", np.full((4, 5), 254 + number), [(0, 0, 0)]
        )
    return source, base, labels


def test_train_aug_is_sbd_and_voc_train_without_voc_val(
    sbd: tuple[Path, Path, dict[str, np.ndarray]],
) -> None:
    source, base, labels = sbd
    make_train_aug(source, base, progress=False)
    made_list = base / "ImageSets" / "Segmentation" / "train_aug.txt"
    assert made_list.read_text() == "2007_voc1\n2007_voc2\n2008_s1\n2008_s2\n"
    masks = base / "SegmentationClassAug"
    assert sorted(os.listdir(masks)) == [f"{name}.png" for name in made_list.read_text().split()]
    for name in ("2008_s1", "2008_s2"):
        assert np.array_equal(read_mask(masks / f"{name}.png"), labels[name])
    for name in ("2007_voc1", "2007_voc2"):
        assert (masks / f"{name}.png").read_bytes() == (
            base / "SegmentationClass" / f"{name}.png"
        ).read_bytes()
    # class 1, aeroplane
    assert list((masks / "2008_s1.png").read_bytes().partition(b"PLTE")[2][3:6]) == [
        128,
        0,
        0,
    ]


def test_train_aug_reads_as_a_split_of_voc(sbd: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    source, base, labels = sbd
    for name in ("2007_voc1", "2007_voc2"):
        picture_files.save_labels(
            base / "SegmentationClass" / f"{name}.png", np.full((4, 5), 255), [(0, 0, 0)]
        )
    make_train_aug(source, base, progress=False)
    split = VOC(str(base.parent), "train_aug")
    assert split.problems == []
    assert split.ids == ["2007_voc1", "2007_voc2", "2008_s1", "2008_s2"]
    assert np.array_equal(split[2].mask, labels["2008_s1"])
    assert (split[0].mask == 255).all()
    direct = VOC(str(base.parent), "train_aug", sbd=str(source.parent))
    assert direct.ids == split.ids
    assert all(np.array_equal(direct[i].mask, split[i].mask) for i in range(4))


def test_a_second_conversion_changes_nothing(
    sbd: tuple[Path, Path, dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, base, _ = sbd
    # benchmark_RELEASE, or dataset in it
    conf = run("voc.VOC", base.parent, sbd=str(source.parent))
    assert prepare.prepare(conf)
    assert "train_aug.txt: 4 ids (10,582 in the full sets)" in capsys.readouterr().out
    before = state(base)
    monkeypatch.setattr(voc_module, "read_mat", None)  # would raise if it were called
    assert prepare.prepare(conf)
    assert state(base) == before


def test_an_interrupted_conversion_goes_on(sbd: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    source, base, labels = sbd
    damaged = source / "cls" / "2008_s2.mat"
    masks = base / "SegmentationClassAug"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2008_s2\.mat: cannot be read"):
        make_train_aug(source, base, progress=False)
    assert not (base / "ImageSets" / "Segmentation" / "train_aug.txt").exists()
    # no half file
    assert set(os.listdir(masks)) <= {
        "2007_voc1.png",
        "2007_voc2.png",
        "2008_s1.png",
    }
    before = state(masks)
    damaged.write_bytes(whole)
    make_train_aug(source, base, progress=False)
    assert np.array_equal(read_mask(masks / "2008_s2.png"), labels["2008_s2"])
    assert before.items() <= state(masks).items()


def test_what_sbd_or_voc_lacks_is_named(sbd: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    source, base, _ = sbd
    made_list = base / "ImageSets" / "Segmentation" / "train_aug.txt"
    made_list.write_text("2008_s1\n")
    with pytest.raises(
        DataError, match=r"train_aug\.txt: lists other ids than VOC and .* remove it"
    ):
        make_train_aug(source, base, progress=False)
    made_list.unlink()
    (base / "SegmentationClass" / "2007_voc2.png").unlink()
    with pytest.raises(DataError, match=r"2007_voc2\.png: missing, but .*/train\.txt lists it"):
        make_train_aug(source, base, progress=False)
    shutil.rmtree(base / "SegmentationClassAug")
    (source / "cls" / "2008_s1.mat").unlink()
    (base / "SegmentationClass" / "2007_voc2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2008_s1\.mat: cannot be read: No such file"):
        make_train_aug(source, base, progress=False)
    sbd_mat(source / "cls" / "2008_s1.mat", np.full((4, 5), 21))
    with pytest.raises(
        DataError, match=r"2008_s1\.mat: mask value 21 at \(x=0, y=0\), but voc has classes 0-20"
    ):
        make_train_aug(source, base, progress=False)


def test_sbd_is_fetched_where_its_folder_is_not_there(
    sbd: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, base, _ = sbd
    names = ["train.txt", "val.txt", *(f"cls/{path.name}" for path in (source / "cls").iterdir())]
    content = tarred(
        {f"benchmark_RELEASE/dataset/{name}": (source / name).read_bytes() for name in names}
    )
    asked: list[str] = []

    def download(url: str, target: Path, *rest: object) -> None:
        asked.append(url)
        target.write_bytes(content)

    monkeypatch.setattr(download_module, "download", download)
    assert prepare.prepare(run("voc.VOC", base.parent, sbd=str(tmp_path / "sbd")))
    assert asked == [SBD.url]
    assert (tmp_path / "sbd" / "train.txt").read_bytes() == (source / "train.txt").read_bytes()
    assert len(os.listdir(base / "SegmentationClassAug")) == 4


def test_context_maps_of_459_classes_become_the_59_in_the_official_order(tmp_path: Path) -> None:
    # 2 aeroplane, 397 table, 458 wood, 19 bedclothes; 431 unknown, 255 and 459 are none of the 59.
    labels = np.array([[0, 2, 397, 458], [19, 431, 255, 459]], np.uint16)
    savemat(tmp_path / "2008_000002.mat", {"LabelMap": labels}, do_compression=True)
    target = tmp_path / "59_context_labels"
    convert_to_59(tmp_path, target, progress=False)
    assert read_mask(target / "2008_000002.png").tolist() == [[0, 1, 11, 59], [52, 0, 0, 0]]
    before = state(target)
    convert_to_59(tmp_path, target, progress=False)
    assert state(target) == before


def test_context_is_unpacked_converted_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every label once
    labels = np.random.default_rng(0).permutation(460).reshape(20, 23).astype(np.uint16)
    file = io.BytesIO()
    image = picture_files.png(np.zeros((20, 23, 3), np.uint8))
    savemat(file, {"LabelMap": labels})
    year = {
        "VOCdevkit/VOC2010/JPEGImages/a.png": image,
        "VOCdevkit/VOC2010/ImageSets/Main/train.txt": b"a\n",
    }
    contents = [
        tarred(year),
        tarred({"trainval/a.mat": file.getvalue(), "labels.txt": b"1: accordion"}),
    ]
    monkeypatch.setattr(context_module, "CONTEXT", tuple(map(made, CONTEXT, contents)))
    (tmp_path / "downloads").mkdir()
    for archive, content in zip(CONTEXT, contents, strict=True):
        (tmp_path / "downloads" / archive.name).write_bytes(content)
    conf = run("context.Context", tmp_path)
    base = tmp_path / "VOC2010"
    assert prepare.prepare(conf)
    for classes in (59, 60):
        direct = Context(str(tmp_path), "train", classes, masks="trainval", ids=459)
        assert np.array_equal(Context(str(tmp_path), "train", classes)[0].mask, direct[0].mask)
    shutil.rmtree(base / "trainval")
    before = state(tmp_path)
    assert prepare.prepare(conf)
    assert state(tmp_path) == before


def test_a_context_map_with_other_labels_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"LabelMap": np.array([[1, 460]], np.uint16)})
    with pytest.raises(
        DataError, match=r"a\.mat: holds labels 1 to 460, but PASCAL-Context has 0 to 459"
    ):
        convert_to_59(tmp_path, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="file/out: cannot be made"):
        convert_to_59(tmp_path, tmp_path / "file" / "out", progress=False)
