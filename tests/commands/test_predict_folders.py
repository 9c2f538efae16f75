"""`segpredict` over a folder of strangers' files, and the ids of what it writes.

Members of the folder: a Mac's `._` file, a truncated photo, an empty one, WebP and BMP, an
upper-case suffix, a linked folder, HEIC and text beside them, hidden folders, broken links, names
that no file here may have. Of the ids: a number in a name that
is no id, a name below a folder, a name that two images have, a name that no image has, COCO's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import SMALL_RUN, done, load, refused, save, trained, typed

import segtrain
from segtrain.benchmarks.photos import image_ids
from segtrain.config.schema import RunConf
from segtrain.errors import DataError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    return trained(
        tmp_path_factory.mktemp("runs") / "run",
        "dataset.train=2",
        "dataset.val=2",
        "dataset.size=[32,32]",
        *SMALL_RUN,
        "train.steps=1",
        "log.images=0",
    )


def test_what_cannot_be_read_does_not_cost_the_others(run: Path, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    photos = tmp_path / "photos"
    card = tmp_path / "card"
    save(photos / "a.png", pixels)
    save(photos / "B.JPG", pixels)
    save(card / "c.webp", pixels)
    save(card / "d.bmp", pixels)
    (photos / "linked").symlink_to(card)
    (photos / "._a.png").write_bytes(b"Mac OS X")
    (photos / "e.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "notes.txt").write_text("sunny")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "none.jpg").write_bytes(b"")
    ended = typed(
        "segpredict", f"checkpoint={run}", f"input={photos}", f"output={tmp_path / 'maps'}"
    )
    assert ended.code == 65
    assert "left out: 1 .heic, 1 .txt, 1 hidden (convert HEIC and AVIF to JPEG)" in ended.out
    assert "4 images; predictions and overlays" in ended.out
    lines = ended.err.splitlines()
    assert "cut.png: cannot be decoded" in lines[0]
    assert "none.jpg: is empty" in lines[1]
    assert lines[2] == "segpredict: 2 of 6 images could not be read; they stand above"
    maps = {
        path.relative_to(tmp_path / "maps").as_posix()
        for path in (tmp_path / "maps").rglob("*.png")
    }
    assert {"a.png", "B.png", "linked/c.png", "linked/d.png"} <= maps
    assert not any("cut" in name for name in maps)


def test_hidden_folders_and_broken_links_are_counted(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    pixels = np.zeros((32, 32, 3), np.uint8)
    save(photos / "a.png", pixels)
    save(photos / ".ipynb_checkpoints/a.png", pixels)
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    out = done("segpredict", f"checkpoint={run}", f"input={photos}", f"output={tmp_path / 'o'}")
    assert "left out: 1 broken link, 1 hidden, 1 no file\n" in out


def test_a_name_that_no_file_may_have_does_not_cost_the_others(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo = save(photos / "a.png", np.zeros((32, 32, 3), np.uint8))
    for name in (b"b\nb.png", b"caf\xe9.png"):
        Path(os.fsdecode(os.fsencode(photos) + b"/" + name)).write_bytes(photo.read_bytes())
    ended = typed("segpredict", f"checkpoint={run}", f"input={photos}", f"output={tmp_path / 'o'}")
    assert ended.code == 65
    assert (tmp_path / "o/a.png").is_file()
    lines = ended.err.splitlines()
    assert lines[0].startswith("input=b\\nb: holds a control character")
    assert lines[1].startswith("input=caf\\udce9: holds a control character, or bytes that are no")
    assert lines[2] == "segpredict: 2 of 3 images could not be read; they stand above"


def test_one_image_that_cannot_be_read_is_the_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    ended = typed(
        "segpredict", f"checkpoint={run}", f"input={tmp_path / 'x.png'}", f"output={tmp_path / 'o'}"
    )
    assert (ended.code, ended.err.count("\n")) == (65, 1)
    assert "x.png: is empty" in ended.err


def test_probabilities_are_written_beside_the_map(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = save(tmp_path / "x.png", rng.integers(0, 256, (40, 32, 3), np.uint8))
    done(
        "segpredict",
        f"checkpoint={run}",
        f"input={photo}",
        f"output={tmp_path / 'o'}",
        "probabilities=true",
    )
    found = np.load(tmp_path / "o/x.npy")
    assert (found.shape, found.dtype) == ((6, 40, 32), np.float16)
    expected = segtrain.load(run).probabilities(photo)
    assert (found == expected.numpy().astype(np.float16)).all()
    assert (load(tmp_path / "o/x.png") == expected.argmax(0).numpy()).all()
    refused(
        2,
        ["probabilities=yes: true, or false"],
        "segpredict",
        f"checkpoint={run}",
        f"input={photo}",
        f"output={tmp_path / 'o'}",
        "probabilities=yes",
    )


def of(dataset: str) -> RunConf:
    return segtrain.compose([f"dataset={dataset}", "model=mask_rcnn_r18"])


def paths(*names: str) -> dict[Path, Path]:
    return {Path("photos", name): Path(name).with_suffix("") for name in names}


def test_a_name_of_twelve_digits_is_an_id_on_coco_alone() -> None:
    found = paths("7.jpg", "val/000000000139.jpg")
    assert list(image_ids(found, None, of("coco_json")).values()) == ["7", "val/000000000139"]
    assert list(image_ids(found, None, of("voc_instance")).values()) == ["7", "val/000000000139"]
    assert list(image_ids(found, None, of("coco_instance")).values()) == ["7", 139]
    others = paths("0001.png", "1.png", "b/0001.png", "0000000000139.jpg", "x000000000139.jpg")
    named = [name.as_posix() for name in others.values()]
    assert list(image_ids(others, None, of("coco_instance")).values()) == named


def test_ids_come_from_the_file_that_names_the_images(tmp_path: Path) -> None:
    images = [
        {"id": 900, "file_name": "7.jpg", "height": 4, "width": 4},
        {"id": 12, "file_name": "day/8.jpg", "height": 4, "width": 4},
        {"id": 13, "file_name": "night/8.jpg", "height": 4, "width": 4},
        {"id": -4, "file_name": "deep/ü 9.png", "height": 4, "width": 4},
    ]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "a"}]}))
    conf = of("coco_json")
    found = image_ids(paths("7.jpg", "night/8.jpg", "ü 9.png"), file, conf)
    assert list(found.values()) == [900, 13, -4]
    with pytest.raises(DataError, match=r"photos/8\.jpg: is named by 2 images in annotations="):
        image_ids(paths("8.jpg"), file, conf)
    with pytest.raises(DataError, match=r"photos/10\.jpg: is not named in annotations="):
        image_ids(paths("10.jpg"), file, conf)


def named_in(folder: Path, *images: tuple[Any, str]) -> Path:
    file = folder / "names.json"
    file.write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in images]}))
    return file


@pytest.mark.parametrize(
    ("written", "photo"),
    [
        ("day\\p.png", "day/p.png"),
        ("p.png?raw=1", "p.png"),
        ("https://host/a/p%20q.png?x=1#y", "p q.png"),
        ("u\u0308.png", "ü.png"),
        ("ü.png", "u\u0308.png"),
        ("/data/day/p.png", "p.png"),
    ],
)
def test_a_name_is_found_however_it_is_written(tmp_path: Path, written: str, photo: str) -> None:
    file = named_in(tmp_path, ("0001", written), (3, "other.png"))
    assert list(image_ids(paths(photo), file, of("coco_json")).values()) == ["0001"]


def test_of_names_that_end_alike_the_longest_end_counts(tmp_path: Path) -> None:
    file = named_in(tmp_path, (1, "img/a/p.png"), (2, "img/b/p.png"), (1 << 70, "img/c/q.png"))
    found = image_ids(paths("b/p.png", "a/p.png", "q.png"), file, of("coco_json"))
    assert list(found.values()) == [2, 1, 1 << 70]
    with pytest.raises(DataError, match=r"photos/p\.png: is named by 2 images .* \(as 1 and 2\)"):
        image_ids(paths("p.png"), file, of("coco_json"))
    both = r"photos/c/q\.png and photos/d/q\.png: both are image \d+ by their names in annotations="
    with pytest.raises(DataError, match=both):
        image_ids(paths("c/q.png", "d/q.png"), file, of("coco_json"))


def test_faults_of_the_file_of_names_are_told(tmp_path: Path) -> None:
    file = named_in(tmp_path, (1, "p.png"), (2, "p.png"))
    with pytest.raises(DataError, match=r"names\.json: images 1 and 2 are both `p\.png`"):
        image_ids(paths("p.png"), file, of("coco_json"))
    file = named_in(tmp_path, (1, ""), (2, "p.png"))
    fault = r"q\.png: is not named in annotations=.*; its first fault: .* image 1: `file_name` is"
    with pytest.raises(DataError, match=fault):
        image_ids(paths("q.png"), file, of("coco_json"))


def test_predict_from_python_writes_the_bytes_of_the_command(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    photos = tmp_path / "photos"
    save(photos / "a.png", rng.integers(0, 256, (40, 32, 3), np.uint8))
    save(photos / "day/b.png", rng.integers(0, 256, (32, 48, 3), np.uint8))
    arguments = [f"checkpoint={run}", f"input={photos}", f"output={tmp_path / 'typed'}"]
    done("segpredict", *arguments, "probabilities=True")
    files = segtrain.predict(segtrain.load(run), photos, tmp_path / "called", probabilities=True)
    assert files == {
        photos / "a.png": tmp_path / "called/a.png",
        photos / "day/b.png": tmp_path / "called/day/b.png",
    }
    assert contents(tmp_path / "called") == contents(tmp_path / "typed")
    assert len(contents(tmp_path / "called")) == 7  # and the list of what is ours

    (photos / "c.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 3 images could not be read; the first: .*c\.png"):
        segtrain.predict(segtrain.load(run), photos, tmp_path / "others")
    assert (tmp_path / "others/day/b.png").read_bytes() == files[photos / "day/b.png"].read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
