"""R19: the data change between the starts of a run.

Members, of real runs: an image added, removed, an image altered, a mask altered in one pixel with
its size kept, two images swapped, the labels of two images swapped, the order of a list, values of
two classes swapped in the class table, a colour, the annotations of a file of COCO's format; many
files, of which some are compared by size alone; a list of sums; runs of before, an edited
fingerprint and that of another run, data that moved, an extended run, several processes. Of every
data set: each file that it opens is in its fingerprint.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commandline import done, load, refused, save, trained, typed

from segtrain.checkpoints import reading
from segtrain.config import parts
from segtrain.config.compose import check, compose_config
from segtrain.contracts import Dataset
from segtrain.data import fingerprint
from segtrain.datasets.folder import Folder

SMALL = (
    *("dataset=folder", "dataset.root=data", "dataset.lists=lists", "dataset.crop=[32,32]"),
    *("model=unet", "model.width=4", "train.batch_size=2", "train.steps=4", "train.eval_every=2"),
    *("train.precision=fp32", "train.threads=1", "train.device=cpu", "writer=[]", "log.images=0"),
)
NAMES = {"train": ["c", "a", "b"], "val": ["d"]}
ALLOW = "dataset.allow_change=true"


def make_data(root: Path) -> None:
    """Three images to train on and one to measure, and a list for each split."""
    rng = np.random.default_rng(0)
    for split, names in NAMES.items():
        for name in names:
            save(root / f"images/{name}.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            save(root / f"masks/{name}.png", rng.integers(0, 2, (32, 32), dtype=np.uint8))
        (root / "lists").mkdir(exist_ok=True)
        (root / "lists" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    classes(root, [0, "road", [9, 9, 9]], [1, "car", [0, 0, 99]])


def classes(root: Path, *entries: list) -> None:
    """Write a class table."""
    table = [{"id": number, "name": name, "color": color} for number, name, color in entries]
    (root / "classes.json").write_text(json.dumps({"classes": table}))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and in `run` a run of it that stopped after two of four steps."""
    place = tmp_path_factory.mktemp("stopped")
    make_data(place / "data")
    begin(place)
    return place


def begin(place: Path, *words: str) -> None:
    before = Path.cwd()
    os.chdir(place)
    try:
        trained(Path("run"), *SMALL, *words)
    finally:
        os.chdir(before)
    (place / "run" / "summary.json").unlink()
    shutil.rmtree(place / "run" / "checkpoints" / "step_00000004")


@pytest.fixture
def place(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same again, free to be changed, and the current folder."""
    return copied(stopped, tmp_path, monkeypatch)


def copied(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(stopped, tmp_path / "place")
    record = copy / "run" / ".hydra" / "hydra.yaml"
    record.write_text(record.read_text().replace(str(stopped), str(copy)))
    monkeypatch.chdir(copy)
    return copy


def said(*words: str) -> str:
    """What a resume prints that must go on to its end."""
    printed = done("segtrain", "resume=run", *words)
    assert Path("run/summary.json").is_file()
    return printed


# ---------------------------------------------------------------------- what may happen to them


def one_added() -> None:
    save(Path("data/images/e.png"), np.zeros((32, 32, 3), np.uint8))
    save(Path("data/masks/e.png"), np.zeros((32, 32), np.uint8))
    Path("data/lists/train.txt").write_text("c\na\nb\ne\n")


def one_removed() -> None:
    Path("data/lists/train.txt").write_text("c\nb\n")


def another_order() -> None:
    Path("data/lists/train.txt").write_text("a\nb\nc\n")


def one_pixel(path: Path) -> None:
    """Alter one pixel and keep the number of bytes."""
    before = path.stat().st_size
    pixels = load(path)
    for place in np.ndindex(pixels.shape[:2]):
        changed = pixels.copy()
        changed[place] = 1 - changed[place] if pixels.ndim == 2 else 255 - changed[place]
        save(path, changed)
        if path.stat().st_size == before:
            return
    raise AssertionError("no pixel leaves the size")


def image_altered() -> None:
    one_pixel(Path("data/images/a.png"))


def mask_altered() -> None:
    one_pixel(Path("data/masks/b.png"))


def validation_mask_altered() -> None:
    one_pixel(Path("data/masks/d.png"))


def swapped(folder: str) -> None:
    one, other = Path("data", folder, "a.png"), Path("data", folder, "b.png")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def images_swapped() -> None:
    swapped("images")


def labels_swapped() -> None:
    swapped("masks")


def values_swapped() -> None:
    classes(Path("data"), [1, "road", [9, 9, 9]], [0, "car", [0, 0, 99]])


def colour_changed() -> None:
    classes(Path("data"), [0, "road", [9, 9, 9]], [1, "car", [0, 0, 98]])


def value_ignored() -> None:
    table = json.loads(Path("data/classes.json").read_text())
    Path("data/classes.json").write_text(json.dumps({**table, "ignored": [255]}))


CHANGES: dict[Callable[[], None], str] = {
    one_added: "train: 1 image added (e)",
    one_removed: "train: 1 image removed (a)",
    another_order: "train: the images come in another order",
    image_altered: "train: 1 file altered (data/images/a.png)",
    mask_altered: "train: 1 file altered (data/masks/b.png)",
    validation_mask_altered: "val: 1 file altered (data/masks/d.png)",
    images_swapped: "train: 2 files altered (data/images/a.png, data/images/b.png)",
    labels_swapped: "train: 2 files altered (data/masks/a.png, data/masks/b.png)",
    values_swapped: "classes changed (`road` was 0, is 1, `car` was 1, is 0); val: ",
    colour_changed: "classes changed (`car` had the colour [0, 0, 99], has [0, 0, 98])",
    value_ignored: "classes changed (other values are ignored)",
}
QUICK = (one_added, mask_altered, values_swapped)


@pytest.mark.row("R19")
@pytest.mark.parametrize(
    "change",
    [pytest.param(c, id=c.__name__, marks=() if c in QUICK else pytest.mark.slow) for c in CHANGES],
)
def test_data_that_changed_are_named_and_refused(place: Path, change: Callable[[], None]) -> None:
    change()
    words = [str(place / word) if word.startswith("data/") else word for word in [CHANGES[change]]]
    words = [word.replace("data/", f"{place}/data/") for word in words]
    refused(65, [*words, ALLOW], "segtrain", "resume=run")


@pytest.mark.row("R19")
@pytest.mark.parametrize(
    "change", [pytest.param(one_added, marks=pytest.mark.slow), labels_swapped]
)
def test_with_allow_change_a_run_goes_on_says_so_and_knows_the_new_data(
    place: Path, change: Callable[[], None]
) -> None:
    change()
    words = CHANGES[change].replace("data/", f"{place}/data/")
    printed = said(ALLOW)
    assert f"warn   the data changed: {words}" in printed
    newest = reading.latest(place / "run/checkpoints")
    assert newest is not None
    assert newest.meta["fingerprint"] == fingerprint.sum_of(place / "run/fingerprint.json")
    # It holds for one resume: the next one compares with what is there now.
    (place / "run/summary.json").unlink()
    assert "the data changed" not in said()
    one_pixel(Path("data/images/c.png"))
    (place / "run/summary.json").unlink()
    refused(65, ["images/c.png"], "segtrain", "resume=run")


@pytest.mark.row("R19")
@pytest.mark.slow
def test_data_that_did_not_change_are_not_talked_about_wherever_they_lie(place: Path) -> None:
    shutil.move("data", "moved")
    printed = said("dataset.root=moved")
    assert "the data changed" not in printed
    assert "fingerprint" not in printed
    assert "compares the size alone" not in printed


@pytest.mark.row("R19")
@pytest.mark.slow
def test_changed_data_are_verified_again(place: Path) -> None:
    save(Path("data/masks/a.png"), np.full((32, 32), 7, np.uint8))
    refused(65, ["masks/a.png: mask value 7"], "segtrain", "resume=run", ALLOW)


@pytest.mark.row("R19")
@pytest.mark.slow
def test_of_many_files_some_are_compared_by_size_alone_which_is_said(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six files of training three are hashed: image c, labels of c or image a, labels of b."""
    monkeypatch.setattr(fingerprint, "HASHED", 3)
    names = [f"{what} {name}" for name in "cab" for what in ("image", "labels of")]
    assert fingerprint.spread(names) == {"image c", "image a", "labels of b"}
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    printed = done("segtrain", *SMALL, "hydra.run.dir=run")
    assert "of 3 of the 8 files a resume compares the size alone" in printed
    Path("run/summary.json").unlink()
    shutil.rmtree("run/checkpoints/step_00000004")
    one_pixel(Path("data/images/b.png"))
    copy = shutil.copytree("run", "again")
    done("segtrain", f"resume={copy}")  # missed, as was said
    one_pixel(Path("data/images/a.png"))
    refused(65, ["1 file altered (", "images/a.png)"], "segtrain", "resume=run")
    save(Path("data/images/b.png"), np.zeros((32, 32, 3), np.uint8))  # of another size
    refused(65, ["2 files altered (", "images/b.png)"], "segtrain", "resume=run")


# ---------------------------------------------------------------------- lists of sums


@pytest.mark.row("R19")
@pytest.mark.slow
def test_a_list_of_sums_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "HASHED", 3)
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    done("segdata", "manifest", *SMALL, "output=sums.txt")
    lines = Path("sums.txt").read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == [
        f"{folder}/{name}.png" for folder in ("images", "masks") for name in "abcd"
    ]
    printed = done("segtrain", *SMALL, "dataset.manifest=sums.txt", "hydra.run.dir=run")
    assert "compares the size alone" not in printed
    Path("run/summary.json").unlink()
    shutil.rmtree("run/checkpoints/step_00000004")
    one_pixel(Path("data/images/b.png"))
    line = "images/b.png: is not what "
    refused(65, [line, "sums.txt lists", "the data changed"], "segtrain", "resume=run")
    refused(65, [line, "segdata manifest"], "segtrain", *SMALL, "dataset.manifest=sums.txt")
    ended = typed("segdata", "verify", *SMALL, "dataset.manifest=sums.txt")
    assert ended.code == 65
    assert line in ended.err
    done("segtrain", "resume=run", ALLOW)


@pytest.mark.row("R19")
def test_sha256sum_and_segdata_write_the_same_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    for folder in ("images", "masks"):
        Path(f"data/{folder}/a.png").rename(f"data/{folder}/a \\ä.png")
    Path("data/lists/train.txt").write_text("c\na \\ä\nb\n")
    done("segdata", "manifest", *SMALL, "output=ours.txt")
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("there is no sha256sum here")
    files = [str(path) for path in sorted(Path("data").rglob("*.png"))]
    theirs = subprocess.run(
        [tool, *(file.removeprefix("data/") for file in files)],
        cwd="data",
        capture_output=True,
        check=True,
    ).stdout
    assert sorted(Path("ours.txt").read_bytes().splitlines()) == sorted(theirs.splitlines())
    done("segdata", "verify", *SMALL, "dataset.manifest=ours.txt")
    Path("ours.txt").write_text("no sum\n")
    words = ["ours.txt, line 1: is not `SHA-256  path`"]
    refused(65, words, "segtrain", *SMALL, "dataset.manifest=ours.txt")


# ---------------------------------------------------------------------- fingerprints


@pytest.mark.row("R19")
@pytest.mark.slow
def test_a_fingerprint_that_was_edited_is_of_another_run_or_gone_is_noticed(place: Path) -> None:
    file = Path("run/fingerprint.json")
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"a"', b'"z"'))
    line = "run/fingerprint.json is not what the checkpoint was saved with"
    refused(65, [line, ALLOW], "segtrain", "resume=run")
    file.unlink()
    words = ["run/fingerprint.json, what they were, cannot be read: No such file"]
    refused(65, words, "segtrain", "resume=run")
    said(ALLOW)
    assert file.read_bytes() == content


@pytest.mark.row("R19")
@pytest.mark.slow
def test_a_run_of_before_goes_on_says_so_and_has_a_fingerprint_then(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("segtrain.engine.state._keep", lambda path, content: None)
        shutil.rmtree("run")
        begin(place)
    assert not Path("run/fingerprint.json").exists()
    one_pixel(Path("data/images/b.png"))
    printed = said()
    assert "note   no fingerprint of the data from before: what changed is not noticed" in printed
    Path("run/summary.json").unlink()
    one_pixel(Path("data/images/b.png"))
    refused(65, ["images/b.png"], "segtrain", "resume=run")


@pytest.mark.row("R19")
@pytest.mark.slow
def test_without_verification_sizes_are_compared_which_is_said(place: Path) -> None:
    shutil.rmtree("run")
    begin(place, "train.verify=false")
    line = "note   of 8 of the 8 files a resume compares the size alone"
    assert line in Path("run/train.log").read_text()
    save(Path("data/images/b.png"), np.zeros((32, 32, 3), np.uint8))
    refused(65, ["1 file altered (", "images/b.png)"], "segtrain", "resume=run")


@pytest.mark.row("R19")
@pytest.mark.slow
def test_an_extended_run_goes_on_with_the_same_data(place: Path) -> None:
    mask_altered()
    words = ["extend=run", "train.steps=6", "hydra.run.dir=longer"]
    refused(65, ["masks/b.png"], "segtrain", *words)


@pytest.mark.row("R19")
@pytest.mark.slow
def test_several_processes_share_the_files_and_say_what_changed_once(place: Path) -> None:
    shutil.rmtree("run")
    segtrain = [sys.executable, "-m", "segtrain"]
    words = [*SMALL, "train.processes=2", "model.norm=group", "log.progress=false"]
    ran = subprocess.run([*segtrain, *words, "hydra.run.dir=run"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    Path("run/summary.json").unlink()
    shutil.rmtree("run/checkpoints/step_00000004")
    one = json.loads(Path("run/fingerprint.json").read_text())
    assert list(one["splits"]["train"]["files"]) == [
        f"{what} {name}" for name in "cab" for what in ("image", "labels of")
    ]
    mask_altered()
    ran = subprocess.run([*segtrain, "resume=run"], capture_output=True, text=True)
    assert ran.returncode == 65, ran.stderr
    assert ran.stderr.count("masks/b.png") == 1


@pytest.mark.row("R19")
@pytest.mark.slow
def test_the_files_of_a_cached_set_are_those_it_was_made_of(place: Path) -> None:
    shutil.rmtree("run")
    done("segdata", "prepare", *SMALL, "dataset.cache=cache")
    begin(place, "dataset.cache=cache")
    assert said() is not None
    Path("run/summary.json").unlink()
    path = Path("data/masks/b.png")
    changed = path.stat().st_mtime_ns
    mask_altered()
    os.utime(path, ns=(changed, changed))  # by size and time the cache is that of these files
    refused(65, ["1 file altered (", "masks/b.png)"], "segtrain", "resume=run")


# ---------------------------------------------------------------------- of every data set

# What is typed for each, and how many of its samples are read.
REAL = {
    "camvid": ["dataset.root={}/camvid"],
    "cityscapes": ["dataset.root={}/cityscapes", "dataset.val_split=train"],
    "cityscapes_instance": ["dataset.root={}/cityscapes", "dataset.val_split=train"],
    "coco_instance": ["dataset.root={}/coco"],
    "coco_stuff": ["dataset.root={}/coco"],
    "coco_voc": ["dataset.root={}/coco"],
    "context": ["dataset.root={}/pascal_context", "dataset.train_split=val"],
    "voc": ["dataset.root={}/voc2012/VOCdevkit"],
    "voc_crops": ["dataset.root={}/voc2012/VOCdevkit", "dataset.crops_of=train_instances",
                  "dataset.train_split=train_instances"],
    "voc_instance": ["dataset.root={}/voc2012/VOCdevkit", "dataset.train_split=train_instances"],
}  # fmt: skip
opened: list[str] | None = None  # paths that were opened, while somebody wants to know


def _note(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        opened.append(os.fspath(arguments[0]))


sys.addaudithook(_note)  # none can be taken away; this one does nothing but inside `paths_read`


def paths_read(read: Callable[[], object]) -> set[Path]:
    """The files that `read` opens."""
    global opened
    opened = []
    try:
        read()
        return {Path(path) for path in opened}
    finally:
        opened = None


def read_two(data: Dataset) -> None:
    for index in range(min(2, len(data))):
        data.scored(index)
        data.target(index)
        data.doubts(index)


@pytest.mark.row("R19")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "voc_instance" else pytest.mark.slow) for n in REAL],
)
def test_every_file_that_a_data_set_reads_is_in_its_fingerprint(data_root: Path, name: str) -> None:
    conf = check(compose_config([f"dataset={name}", *(w.format(data_root) for w in REAL[name])])[0])
    data = parts.dataset(conf.dataset, conf.dataset["train_split"], tolerant=True)
    named = set(fingerprint.named_files(data).values())
    found = {path for path in paths_read(lambda: read_two(data)) if path.is_relative_to(data_root)}
    assert found
    assert found <= named


@pytest.mark.row("R19")
@pytest.mark.slow
def test_an_annotation_file_that_changed_is_named(data_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for part in ("train2017", "val2017"):
        (root / part).parent.mkdir(exist_ok=True)
        (root / part).symlink_to(data_root / "coco" / part)
    shutil.copytree(data_root / "coco" / "annotations", root / "annotations")
    node = check(compose_config(["dataset=coco_instance", f"dataset.root={root}"])[0]).dataset

    def taken() -> tuple[fingerprint.Record, dict[str, Path]]:
        data = parts.dataset(node, "val2017", tolerant=True)
        files = fingerprint.named_files(data)
        found, problems = fingerprint.marks(files, fingerprint.spread(list(files), 2))
        assert problems == []
        return fingerprint.record(data, found), files

    before, _ = taken()
    path = root / "annotations/instances_val2017.json"
    text = path.read_text()
    place = text.index('"bbox"')
    number = next(i for i in range(place, len(text)) if text[i] in "12345678")
    path.write_text(text[:number] + str(int(text[number]) + 1) + text[number + 1 :])
    now, files = taken()
    assert fingerprint.differences(before, now, files) == [f"1 file altered ({path})"]


@pytest.mark.row("R19")
def test_swapped_data_of_a_generated_set_are_told_by_ids_and_classes(tmp_path: Path) -> None:
    node = check(compose_config(["dataset=shapes"])[0]).dataset
    data = parts.dataset(node, node["train_split"])
    assert fingerprint.named_files(data) == {}
    record = fingerprint.record(data, {})
    fewer = {**record, "ids": record["ids"][1:]}
    assert fingerprint.differences(fewer, record, {}) == [f"1 image added ({data.ids[0]})"]
    make_data(tmp_path)
    own = Folder(str(tmp_path), "train", lists="lists")
    assert list(fingerprint.named_files(own))[:2] == ["image c", "labels of c"]
