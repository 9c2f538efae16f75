"""One bad sample does not cost a run: the exact step is saved, or the next sample takes its place.

Members: an image that is no PNG, a JPEG that was cut off, a mask of another size, a mask value that
is no class, and an error that no data set of ours raises; found by a worker, by rank 1 of 2, before
the first step, after a resume, twice; more of them than the bound; in validation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Ended, typed
from PIL import Image
from run_folders import assert_same_bits

from segtrain.checkpoints import reading
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler
from segtrain.data.transforms import Augment
from segtrain.datasets.folder import Folder
from segtrain.errors import DataError
from segtrain.logs.metrics_file import BAD_SAMPLES, rewind
from segtrain.structures.samples import Batch

LABELS = [{"id": 0, "name": "ground"}, {"id": 1, "name": "tree"}]
COUNT = 8
# Index of a bad sample -> how the line about it begins, below the root.
BAD = {
    1: "images/train/1.png: ",  # no PNG
    2: "images/train/2.jpg: ",  # cut off
    5: "masks/train/5.png: mask of ",  # a mask of another size
    7: "masks/train/7.png: ",  # no class
}


def data(root: Path, bad: tuple[int, ...]) -> Path:
    """A folder of eight images of noise to train on and one to validate on, some of them bad."""
    for split, count in (("train", COUNT), ("val", 1)):
        for number in range(count):
            rng = np.random.default_rng(number)
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            mask = rng.integers(0, 2, (32, 32), np.uint8)
            ending = "jpg" if number == 2 else "png"
            file = root / f"images/{split}/{number}.{ending}"
            label = root / f"masks/{split}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
            spoiled = split == "train" and number in bad
            if spoiled and number == 1:
                file.write_bytes(b"this is text")
            elif spoiled and number == 2:
                file.write_bytes(file.read_bytes()[:-200])
            elif spoiled and number == 5:
                mask = mask[:16]
            elif spoiled and number == 7:
                mask[3, 4] = 9
            Image.fromarray(mask).save(label)
    return root


def segtrain(root: Path, run: Path, *more: str) -> Ended:
    return typed(
        "segtrain",
        "dataset=folder",
        f"dataset.root={root}",
        "dataset.labels=[{id: 0, name: ground}, {id: 1, name: tree}]",
        "dataset.crop=[32,32]",
        "model=unet",
        "model.width=4",
        "train.steps=6",
        "train.batch_size=2",
        "train.eval_every=6",
        "train.precision=fp32",
        "train.device=cpu",
        "train.threads=1",
        "train.verify=false",
        "log.every=1",
        "log.images=0",
        "writer=[]",
        f"hydra.run.dir={run}",
        *more,
    )


def listed(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / BAD_SAMPLES).read_text().splitlines()]


def met_at(index: int) -> int:
    """Return the update, counted from 1, that reads sample `index` first."""
    steps = StreamSampler(COUNT, 2, 0, 0, 6)
    return next(step for step, keys in enumerate(steps, 1) if index in [i for _, i in keys])


def end_of(run: Path) -> tuple:
    """What must not differ by a bit: weights, optimizer, metrics, and what was left out."""
    last = reading.find(run, "latest")
    files = [(run / name).read_bytes() for name in ("metrics.jsonl", BAD_SAMPLES)]
    return last.step, last.read("model"), last.read("optimizer"), files


def shares(root: Path, workers: int, rank: int = 0, world: int = 1, start: int = 0) -> list[Batch]:
    sampler = StreamSampler(COUNT, 4, 3, start, 6, rank, world)
    dataset = Folder(str(root), "train", labels=LABELS)
    return list(train_loader(dataset, Augment((16, 16)), 3, sampler, workers, spare=4))


def test_the_next_sample_takes_the_place_whoever_reads_and_wherever_it_begins(
    tmp_path: Path,
) -> None:
    root = data(tmp_path, tuple(BAD))
    whole = shares(root, 0)
    orders = list(StreamSampler(COUNT, 4, 3, 0, 6))
    for batch, keys in zip(whole, orders, strict=True):
        # 1 and 2 are bad, so 3 takes both places; after 7, the last, comes 0.
        takes = {1: 3, 2: 3, 5: 6, 7: 0}
        assert batch.ids == [str(takes.get(index, index)) for _, index in keys]
        faults = [bad for _, i in keys for bad in {1: [1, 2], 2: [2], 5: [5], 7: [7]}.get(i, [])]
        assert [fault.index for fault in batch.faults] == faults
        for fault in batch.faults:
            assert fault.reason.removeprefix(f"{root}/").startswith(BAD[fault.index])
    ranks = [shares(root, 0, rank, 2) for rank in (0, 1)]
    joined = [torch.cat([a.images, b.images]) for a, b in zip(*ranks, strict=True)]
    for other in (shares(root, 1), shares(root, 2)):
        assert all(torch.equal(a.images, b.images) for a, b in zip(whole, other, strict=True))
        assert [batch.faults for batch in other] == [batch.faults for batch in whole]
    assert all(torch.equal(a.images, both) for a, both in zip(whole, joined, strict=True))
    assert [a.faults + b.faults for a, b in zip(*ranks, strict=True)] == [b.faults for b in whole]
    late = shares(root, 0, start=2)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], late, strict=True))


@pytest.mark.row("R18")
@pytest.mark.parametrize(
    "index", [5, *(pytest.param(index, marks=pytest.mark.slow) for index in (1, 2, 7))]
)
def test_a_bad_sample_saves_the_exact_step_and_skipping_it_ends_in_the_same_bits(
    tmp_path: Path, index: int
) -> None:
    root = data(tmp_path / "data", (index,))
    ended = segtrain(root, tmp_path / "raised")
    step = met_at(index)
    assert ended.code == 65, ended
    assert ended.err.count("\n") == 1
    assert ended.err.removeprefix(f"segtrain: {root}/").startswith(BAD[index])
    if step > 1:
        saved = [path.name for path in (tmp_path / "raised/checkpoints").iterdir()]
        assert saved == [f"step_{step - 1:08d}"]
        assert f"step {step - 1} is saved, go on with: segtrain resume=" in ended.err
        again = typed("segtrain", f"resume={tmp_path / 'raised'}")
        assert again.code == 65
        assert again.err == ended.err
        went_on = typed("segtrain", f"resume={tmp_path / 'raised'}", "train.bad_samples=skip")
        assert went_on.code == 0, went_on
    skipped = segtrain(root, tmp_path / "skipped", "train.bad_samples=skip")
    assert skipped.code == 0, skipped
    (line,) = listed(tmp_path / "skipped")
    assert (line["step"], line["sample"]) == (step, str(index))
    assert line["file"].startswith(f"{root}/images/train/{index}.")
    assert BAD[index] in line["reason"]
    if step > 1:
        assert_same_bits(end_of(tmp_path / "raised"), end_of(tmp_path / "skipped"))


@pytest.mark.slow
def test_a_file_damaged_while_the_run_goes_on_passes_as_the_message_says(tmp_path: Path) -> None:
    root = data(tmp_path / "data", ())
    run = tmp_path / "run"
    begun = segtrain(root, run, "train.verify=true", "train.save_every=1", "train.keep=9")
    assert begun.code == 0, begun
    (run / "summary.json").unlink()
    for path in (run / "checkpoints").iterdir():
        if int(path.name[5:]) > met_at(5) - 1:
            shutil.rmtree(path)
    mask = root / "masks/train/5.png"
    good = mask.read_bytes()
    mask.write_bytes(good[:40])
    refused = typed("segtrain", f"resume={run}", "train.bad_samples=skip")
    assert (refused.code, "dataset.allow_change=true" in refused.err) == (65, True), refused
    allowed = ("train.bad_samples=skip", "dataset.allow_change=true")
    went_on = typed("segtrain", f"resume={run}", *allowed)
    assert went_on.code == 0, went_on
    assert [line["sample"] for line in listed(run)] == ["5"]


def test_more_bad_samples_than_the_bound_save_the_step_and_end_with_65(tmp_path: Path) -> None:
    root = data(tmp_path / "data", (1, 5))
    ended = segtrain(root, tmp_path / "run", "train.bad_samples=skip")
    first, second = sorted(met_at(index) for index in (1, 5))
    assert 1 < first < second
    assert ended.code == 65, ended
    assert "more than 1 of 8 samples cannot be used" in ended.err
    assert f"step {second - 1} is saved" in ended.err
    assert reading.find(tmp_path / "run", "latest").step == second - 1
    assert [line["step"] for line in listed(tmp_path / "run")] == [first]


@pytest.mark.slow
def test_workers_and_a_resume_list_the_same_samples_and_end_in_the_same_bits(
    tmp_path: Path,
) -> None:
    root = data(tmp_path / "data", (5,))
    every = ("train.bad_samples=skip", "train.save_every=1", "train.keep=9")
    for name, workers in (("alone", 0), ("helped", 2)):
        ended = segtrain(root, tmp_path / name, *every, f"train.workers={workers}")
        assert ended.code == 0, ended
    assert_same_bits(end_of(tmp_path / "alone"), end_of(tmp_path / "helped"))
    for since in (met_at(5) - 1, met_at(5)):  # killed before and after it was met
        killed = tmp_path / f"killed{since}"
        shutil.copytree(tmp_path / "alone", killed)
        (killed / "summary.json").unlink()
        for path in (killed / "checkpoints").iterdir():
            if int(path.name[5:]) > since:
                shutil.rmtree(path)
        assert typed("segtrain", f"resume={killed}").code == 0
        assert_same_bits(end_of(tmp_path / "alone"), end_of(killed))


def test_what_is_found_before_the_first_step_is_listed_and_left_out(tmp_path: Path) -> None:
    root = data(tmp_path / "data", (2,))
    verified = ("train.verify=true", "train.bad_samples=skip")
    ended = segtrain(root, tmp_path / "run", *verified)
    assert ended.code == 0, ended
    (line,) = listed(tmp_path / "run")
    assert (line["step"], line["sample"]) == (0, "2")
    assert "2.jpg" in (tmp_path / "run/train.log").read_text()
    data(tmp_path / "data", (1, 2))
    ended = segtrain(root, tmp_path / "many", *verified)
    assert ended.code == 65
    assert "more than 1 of 8 samples cannot be used" in ended.err
    assert not (tmp_path / "many").exists()


def test_a_bad_sample_of_validation_is_never_left_out(tmp_path: Path) -> None:
    root = data(tmp_path / "data", ())
    (root / "masks/val/0.png").write_bytes(b"")
    for check in ("true", "false"):
        run = tmp_path / check
        ended = segtrain(root, run, "train.bad_samples=skip", f"train.verify={check}")
        assert (ended.code, "masks/val/0.png: is empty" in ended.err) == (65, True)


def test_an_error_of_somebodys_code_names_the_sample_and_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Folder.__getitem__

    def breaks(dataset: Folder, index: int) -> object:
        if dataset.ids[index] == "5" and len(dataset) == COUNT:
            raise ZeroDivisionError("division by zero")
        return read(dataset, index)

    monkeypatch.setattr(Folder, "__getitem__", breaks)
    root = data(tmp_path / "data", ())
    ended = segtrain(root, tmp_path / "run", "train.bad_samples=skip")
    assert ended.code == 70
    last = ended.err.splitlines()[-1]
    assert last.startswith("segtrain: 5: cannot be loaded: ZeroDivisionError: division by zero; ")
    assert reading.find(tmp_path / "run", "latest").step == met_at(5) - 1


def test_lines_about_later_steps_are_dropped_and_the_others_keep_their_bytes(
    tmp_path: Path,
) -> None:
    lines = [b'{"step": %d, "sample": "a"}\n' % step for step in (0, 3, 5)]
    (tmp_path / BAD_SAMPLES).write_bytes(b"".join(lines) + b'{"step": 5, "sam')
    rewind(tmp_path, 3)
    assert (tmp_path / BAD_SAMPLES).read_bytes() == b"".join(lines[:2])
    (tmp_path / BAD_SAMPLES).write_bytes(b"{}\n" + lines[0])
    with pytest.raises(DataError, match="line 1 is damaged"):
        rewind(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.row("R12")
def test_of_two_ranks_both_save_where_one_meets_a_bad_sample(tmp_path: Path) -> None:
    root = data(tmp_path / "data", (5,))
    ended = segtrain(root, tmp_path / "run", "train.processes=2")
    assert ended.code == 65, ended
    assert ended.err.count("masks/train/5.png: ") == 1
    assert reading.find(tmp_path / "run", "latest").step == met_at(5) - 1
    alone = segtrain(root, tmp_path / "alone", "train.bad_samples=skip")
    both = segtrain(root, tmp_path / "both", "train.bad_samples=skip", "train.processes=2")
    assert (alone.code, both.code) == (0, 0), (alone, both)
    assert listed(tmp_path / "alone") == listed(tmp_path / "both")
