"""The cache: the same bytes as the data set, by windows; refused when old or damaged.

Written whole or not at all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.data import cache as cache_module
from segtrain.data.base import BaseDataset
from segtrain.data.cache import Cached, build_cache
from segtrain.data.images import read_image
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler
from segtrain.data.tiles import TILE, offsets, tiled
from segtrain.data.transforms import Augment
from segtrain.datasets.coco import CocoInstances
from segtrain.datasets.folder import Folder
from segtrain.datasets.shapes import Shapes
from segtrain.errors import DataError, DiskError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Files, Sample, Target

# height, width: on, above and below whole tiles
SIZES = [
    (64, 128),
    (65, 127),
    (63, 130),
    (1, 1),
    (200, 70),
]
LABELS = [{"id": i * 10, "name": f"c{i}"} for i in range(5)] + [{"id": 255, "ignore": True}]


def write_pairs(root: Path, labels: list[dict] | None = None) -> Folder:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(SIZES):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        mask = rng.choice(np.array([0, 10, 20, 30, 40, 255], np.uint8), (height, width))
        Image.fromarray(image).save(root / "images" / "train" / f"s{number}.png")
        Image.fromarray(mask).save(root / "masks" / "train" / f"s{number}.png")
    return Folder(str(root), "train", labels=labels or LABELS)


class Objects(BaseDataset):
    """Instances of the same images: `object i` is where the mask file holds 10 * i.

    Counts how often images are read.
    """

    labelled_with = "instances"

    def __init__(self, pairs: Folder) -> None:
        super().__init__(pairs.labels, pairs.ids, ["none but this"])
        self.pairs = pairs
        self.reads = 0

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        image = read_image(self.pairs.files(index)[0])
        return Sample(self.ids[index], image, instances=self.instances(index))

    def files(self, index: int) -> Files:
        return Files(self.pairs.files(index).image)

    def target(self, index: int) -> Target:
        return Target(instances=self.instances(index))

    def instances(self, index: int) -> Instances:
        mask = self.pairs[index].mask
        assert mask is not None
        masks = torch.from_numpy(np.stack([mask == i for i in range(5)]))
        return Instances(torch.zeros(5, 4), torch.arange(5), masks, torch.arange(5) == 3)

    def scored(self, index: int) -> Sample:
        return Sample("scored", self[index].image, instances=self.instances(index))


@pytest.fixture
def pairs(tmp_path: Path) -> Folder:
    return write_pairs(tmp_path / "data")


@pytest.fixture
def folder(pairs: Folder, tmp_path: Path) -> Path:
    build_cache(pairs, tmp_path / "cache", workers=0)
    return tmp_path / "cache"


def assert_equal(one: Sample, two: Sample) -> None:
    assert one.id == two.id
    assert one.image.dtype == two.image.dtype == np.uint8
    assert np.array_equal(one.image, two.image)
    assert two.image.flags.writeable
    assert two.image.flags.c_contiguous
    if one.mask is not None:
        assert two.mask is not None
        assert two.instances is None
        assert two.mask.dtype == one.mask.dtype
        assert np.array_equal(one.mask, two.mask)
        assert two.mask.flags.writeable
        return
    assert one.instances is not None
    assert two.instances is not None
    assert two.mask is None
    assert one.instances.crowd is not None
    assert two.instances.crowd is not None
    for name in ("boxes", "labels", "masks", "crowd"):
        assert torch.equal(getattr(one.instances, name), getattr(two.instances, name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------------- what is read


def test_cached_samples_are_the_data_sets_own_bit_for_bit(pairs: Folder, folder: Path) -> None:
    cached = Cached(pairs, folder)
    assert len(cached) == 5
    assert cached.ids == pairs.ids
    assert cached.labels is pairs.labels
    assert cached.problems == []
    assert cached.files(2) == pairs.files(2)
    for index in range(5):
        assert_equal(pairs[index], cached[index])
        assert np.array_equal(cached.target(index).mask, pairs[index].mask)


def test_a_cache_with_masks_is_read_without_any_source_file(pairs: Folder, folder: Path) -> None:
    samples = [pairs[index] for index in range(5)]
    cached = Cached(pairs, folder)
    shutil.rmtree(pairs.files(0)[0].parent)
    shutil.rmtree(pairs.files(0)[1].parent)
    for index, sample in enumerate(samples):
        assert_equal(sample, cached[index])
        assert_equal(Augment((40, 40))(sample, index), Augment((40, 40))(cached.lazy(index), index))


def test_instances_come_from_the_data_set_and_images_from_the_cache(
    pairs: Folder, tmp_path: Path
) -> None:
    objects = Objects(pairs)
    report = build_cache(objects, tmp_path / "cache", workers=2)
    assert report.mask_bytes == 0
    assert sorted(contents(tmp_path / "cache")) == [
        "images.bin",
        "index.json",
    ]
    cached = Cached(objects, tmp_path / "cache")
    objects.reads = 0
    own = [objects[index] for index in range(5)]
    augment = Augment((50, 40), rotate=20, color=0.3, blur=0.5)
    reads = objects.reads
    for index, sample in enumerate(own):
        assert_equal(sample, cached[index])
        for seed in range(10):
            assert_equal(augment(sample, seed), augment(cached.lazy(index), seed))
    assert objects.reads == reads
    assert cached.scored(1).id == "scored"
    assert cached.problems == ["none but this"]
    assert cached.labelled


@pytest.mark.parametrize("channels", [0, 3])
def test_a_window_is_the_slice_of_the_whole_at_every_border(channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = [(*size, channels) if channels else size for size in [(130, 200), *SIZES]]
    arrays = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    tiles = [tiled(array) for array in arrays]
    (tmp_path / "x.bin").write_bytes(b"".join(one.tobytes() for one in tiles))
    file = cache_module.TileFile(
        tmp_path / "x.bin", np.array([a.shape[:2] for a in arrays]), channels, [0] * 6
    )
    edges = [0, 1, 63, 64, 65, 127, 128, 129, 130, 199, 200]
    for index, array in enumerate(arrays):
        height, width = array.shape[:2]
        lazy = file[index]
        assert lazy.shape == array.shape
        for top in (e for e in edges if e < height):
            for bottom in (e for e in edges if top < e <= height):
                for left, right in ((0, width), (width - 1, width), (0, 1), (width // 2, width)):
                    if left < right:
                        assert np.array_equal(
                            lazy[top:bottom, left:right], array[top:bottom, left:right]
                        )


def test_a_window_reads_its_tiles_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "x.bin").write_bytes(tiled(np.zeros((640, 640, 3), np.uint8)).tobytes())
    lazy = cache_module.TileFile(tmp_path / "x.bin", np.array([[640, 640]]), 3, [0])[0]
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(
        type(lazy.file), "read", lambda self, into, offset: read.append((offset, into.nbytes))
    )
    lazy[70:130, 100:200]  # tile rows 1 and 2, columns 1 to 3
    tile = 64 * 64 * 3
    assert read == [(11 * tile, 3 * tile), (21 * tile, 3 * tile)]


def test_a_window_has_two_slices_without_a_step(folder: Path, pairs: Folder) -> None:
    lazy: Any = Cached(pairs, folder).lazy(0).image
    for window in (slice(None), 0, (0, 0), np.s_[::2, :], np.s_[:, ::-1], np.s_[:, :, :1]):
        with pytest.raises(TypeError, match="read by two slices without a step"):
            lazy[window]
    assert np.array_equal(lazy[:, ::1], pairs[0].image)


def test_the_layout_is_as_described() -> None:
    pixels = np.arange(70 * 130, dtype=np.uint32).astype(np.uint8).reshape(70, 130)
    tiles = tiled(pixels)
    assert tiles.shape == (2, 3, TILE, TILE, 1)
    assert tiles[1, 2, 5, 1, 0] == pixels[69, 129]
    assert tiles[1, 2, 6].max() == 0
    assert tiles[1, 2, :, 2:].max() == 0
    assert offsets(np.array([[70, 130], [64, 64]]), 3).tolist() == [0, 6 * 12288, 7 * 12288]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_same_with_and_without_cache(
    pairs: Folder, folder: Path, workers: int
) -> None:
    augment = Augment((48, 40), rotate=10, color=0.2, blur=0.5)
    plain, cached = (
        list(train_loader(source, augment, 7, StreamSampler(5, 4, 7, 0, 6), workers))
        for source in (pairs, Cached(pairs, folder))
    )
    assert len(plain) == 6
    for one, two in zip(plain, cached, strict=True):
        assert one.masks is not None
        assert two.masks is not None
        assert one.ids == two.ids
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)


def test_a_cached_set_travels_to_a_spawned_worker_without_its_data(
    pairs: Folder, folder: Path
) -> None:
    cached = Cached(pairs, folder)
    sent = ForkingPickler.dumps(cached)
    assert (
        len(sent) - len(ForkingPickler.dumps(pairs))
        < 2_000
        < (folder / "images.bin").stat().st_size
    )
    assert_equal(cached[4], ForkingPickler.loads(sent)[4])


def test_forked_processes_read_side_by_side(pairs: Folder, folder: Path) -> None:
    cached = Cached(pairs, folder)

    def check() -> None:
        for _ in range(200):
            assert_equal(own, cached[4])

    own = pairs[4]
    processes = [multiprocessing.get_context("fork").Process(target=check) for _ in range(2)]
    for process in processes:
        process.start()
    check()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_real_objects_are_augmented_alike_with_and_without_cache(
    data_root: Path, tmp_path: Path
) -> None:
    coco = CocoInstances(str(data_root / "coco"), "val2017")
    build_cache(coco, tmp_path / "cache", workers=2)
    cached = Cached(coco, tmp_path / "cache")
    augment = Augment((160, 200), rotate=10)
    objects = 0
    for index in range(0, len(coco), 4):
        sample = coco[index]
        assert_equal(sample, cached[index])
        one = augment(sample, index)
        two = augment(cached.lazy(index), index)
        assert_equal(one, two)
        assert one.instances is not None
        objects += len(one.instances.labels)
    assert objects > 20


# ---------------------------------------------------------------------- what is refused


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_source_file_is_named(pairs: Folder, folder: Path, which: int) -> None:
    changed = pairs.files(3)[which]
    touch(changed)
    with pytest.raises(
        DataError,
        match=rf"^{folder}: an old cache: {changed} was changed .* run segdata prepare again$",
    ):
        Cached(pairs, folder)
    build_cache(pairs, folder)
    assert_equal(pairs[3], Cached(pairs, folder)[3])


def test_a_mask_file_does_not_make_a_cache_of_images_old(pairs: Folder, tmp_path: Path) -> None:
    objects = Objects(pairs)
    build_cache(objects, tmp_path / "cache")
    touch(pairs.files(3)[1])
    assert_equal(objects[3], Cached(objects, tmp_path / "cache")[3])


def test_other_labels_are_refused_for_masks_only(
    pairs: Folder, folder: Path, tmp_path: Path
) -> None:
    other = Folder(str(tmp_path / "data"), "train", labels=[*LABELS[1:5], LABELS[0], LABELS[5]])
    with pytest.raises(
        DataError,
        match=r"old cache: its masks were made with other labels; run segdata prepare again$",
    ):
        Cached(other, folder)
    build_cache(Objects(pairs), tmp_path / "images")
    assert len(Cached(Objects(other), tmp_path / "images")) == 5


def test_other_images_are_refused(pairs: Folder, folder: Path) -> None:
    pairs.ids[2] = "other"
    with pytest.raises(
        DataError,
        match=r"holds other images than the data set \(other differs\); run segdata prepare",
    ):
        Cached(pairs, folder)
    pairs.ids[2] = "s2"
    del pairs.ids[4]
    with pytest.raises(DataError, match=r"\(the number of images differs\)"):
        Cached(pairs, folder)


def test_no_cache_is_a_mistake_in_the_command(pairs: Folder, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^dataset.cache: no cache in .*nowhere; make it with segdata prepare"
    ):
        Cached(pairs, tmp_path / "nowhere")


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return edit


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("index.json"), "index.json: damaged cache"),
        (lambda folder: (folder / "index.json").write_text("[]"), "index.json: damaged cache"),
        (edited(lambda index: index.pop("sizes")), "index.json: damaged cache"),
        (edited(lambda index: index["sizes"].pop()), "index.json: damaged cache"),
        (edited(lambda index: index["image_checksums"].pop()), "index.json: damaged cache"),
        (edited(lambda index: index["sources"].pop()), "index.json: damaged cache"),
        (
            edited(lambda index: index["mask_checksums"].__setitem__(0, -1)),
            "index.json: damaged cache",
        ),
        (
            edited(lambda index: index.update(format=2)),
            "a cache of format 2, but this version reads 1",
        ),
        (cut("images.bin"), r"images.bin: damaged cache: holds 221183 bytes instead of 221184"),
        (cut("masks.bin"), r"masks.bin: damaged cache: holds 73727 bytes instead of 73728"),
        (
            lambda folder: (folder / "images.bin").unlink(),
            r"images.bin: damaged cache: cannot be read \(No such file",
        ),
    ],
)
def test_a_damaged_cache_is_refused_in_one_line(
    damage: Callable[[Path], object], message: str, pairs: Folder, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(
        DataError, match=rf"^{folder}/?.*{message}.*; run segdata prepare again$"
    ) as caught:
        Cached(pairs, folder)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_is_found_when_a_sample_is_read_whole(pairs: Folder, folder: Path) -> None:
    with (folder / "images.bin").open("r+b") as file:
        file.seek(3 * 12288)
        byte = file.read(1)[0]
        file.seek(3 * 12288)
        file.write(bytes([byte ^ 1]))
    cached = Cached(pairs, folder)
    assert_equal(pairs[0], cached[0])
    with pytest.raises(
        DataError,
        match=r"images.bin: damaged cache: bytes after 24576 are wrong; run segdata prepare",
    ):
        cached[1]


def test_a_file_cut_short_while_it_is_used_is_a_data_error(pairs: Folder, folder: Path) -> None:
    cached = Cached(pairs, folder)
    os.truncate(folder / "images.bin", 100)
    with pytest.raises(
        DataError,
        match=r"images.bin: damaged cache: cut short before byte 12288; run segdata prepare again$",
    ):
        Augment((8, 8))(cached.lazy(0), 0)


# ---------------------------------------------------------------------- how it is written


def test_threads_do_not_change_a_byte_and_progress_is_told(
    pairs: Folder, folder: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    report = build_cache(
        pairs, tmp_path / "two", workers=2, progress=lambda done, total: told.append((done, total))
    )
    assert contents(tmp_path / "two") == contents(folder)
    assert told == [(i, 5) for i in range(1, 6)]
    tiles = 1 * 2 + 2 * 2 + 1 * 3 + 1 + 4 * 2
    assert (report.count, report.image_bytes, report.mask_bytes) == (5, tiles * 12288, tiles * 4096)
    assert report.folder == tmp_path / "two"
    assert report.seconds > 0


def failing(pairs: Folder, error: BaseException) -> Folder:
    """The same data set, whose fourth sample raises `error`."""

    class Failing(Folder):
        def __getitem__(self, index: int) -> Sample:
            if index == 3:
                raise error
            return super().__getitem__(index)

    return Failing(str(pairs.files(0)[0].parents[2]), "train", labels=LABELS)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("s3.png: damaged")])
def test_an_interrupted_build_leaves_what_was_there_and_can_be_started_again(
    pairs: Folder, tmp_path: Path, workers: int, error: BaseException
) -> None:
    folder = tmp_path / "caches" / "train"
    with pytest.raises(type(error)):
        build_cache(failing(pairs, error), folder, workers)
    assert list((tmp_path / "caches").iterdir()) == []
    build_cache(pairs, folder, workers)
    before = contents(folder)
    with pytest.raises(type(error)):
        build_cache(failing(pairs, error), folder, workers)
    assert contents(folder) == before
    assert [p.name for p in (tmp_path / "caches").iterdir()] == ["train"]
    assert_equal(pairs[3], Cached(pairs, folder)[3])


def test_a_killed_build_leaves_nothing_that_is_used_and_is_cleared_away(
    pairs: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "caches" / "train"

    def killed() -> None:
        build_cache(
            pairs,
            folder,
            workers=0,
            progress=lambda done, total: os._exit(9) if done == 3 else None,
        )

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [p.name for p in folder.parent.iterdir()] == [".train.building"]
    with pytest.raises(UserError, match="no cache in"):
        Cached(pairs, folder)
    build_cache(pairs, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["train"]
    assert_equal(pairs[3], Cached(pairs, folder)[3])


def test_two_builds_of_one_cache_do_not_meet(pairs: Folder, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        if done == 2:
            with pytest.raises(
                UserError, match="another process is making this cache; wait for it"
            ):
                build_cache(pairs, tmp_path / "cache")

    build_cache(pairs, tmp_path / "cache", progress=second)
    assert_equal(pairs[3], Cached(pairs, tmp_path / "cache")[3])


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_refuses_is_a_disk_error_and_the_old_cache_stays(
    pairs: Folder, folder: Path, workers: int, request: pytest.FixtureRequest
) -> None:
    before = contents(folder)
    request.getfixturevalue("small_files")
    with pytest.raises(
        DiskError,
        match=r"^.*cache: the cache was not made: it needs 294,912 bytes, [\d,]+ are free; ",
    ):
        build_cache(pairs, folder, workers)
    assert contents(folder) == before
    assert not (folder.parent / ".cache.building").exists()


def test_too_little_room_is_said_before_anything_is_read(
    pairs: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 294_911)
    )
    with pytest.raises(
        DiskError, match=r"it needs 294,912 bytes, 294,911 are free; make room or set dataset.cache"
    ):
        build_cache(failing(pairs, AssertionError("read")), tmp_path / "caches" / "train")
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_folder_with_other_files_is_never_replaced(pairs: Folder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds other files \(images\); name a folder of its own"):
        build_cache(pairs, tmp_path / "data")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        build_cache(pairs, tmp_path / "file")
    assert len(pairs[0].image) == 64
    assert (tmp_path / "file").read_text() == "mine"


def test_generated_images_need_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not read from files, so a cache makes nothing faster"):
        build_cache(Shapes("val"), tmp_path / "cache")  # ty: ignore


def test_an_image_of_another_size_than_its_header_is_not_cached(
    pairs: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "image_size", lambda path: (300, 300))
    monkeypatch.setattr(cache_module, "image_size", lambda path: (300, 300))
    with pytest.raises(
        UserError,
        match=r"^dataset.cache: s0: its size \(64, 128\) is not that in its file's header; "
        r"only whole images can be cached, set it to null$",
    ):
        build_cache(pairs, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
