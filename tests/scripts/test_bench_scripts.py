"""Every benchmark script runs and prints its table, of sizes too small to measure anything."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
Script = Callable[..., str]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Script]:
    """Run `script(name, arguments...)` in this process; return what it and its children print.

    Scripts set threads for the whole process; afterwards they are as before.
    """
    import cv2
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    cv_threads = cv2.getNumThreads()

    def run(name: str, *arguments: object) -> str:
        module = importlib.import_module(name)
        capfd.readouterr()
        module.main([str(argument) for argument in arguments])
        return capfd.readouterr().out

    yield run
    torch.set_num_threads(threads)
    cv2.setNumThreads(cv_threads)


def number_after(text: str, before: str) -> float:
    """The number behind `before`; fails where there is none."""
    found = re.search(rf"{before}\s*([\d.]+)", text)
    assert found, f"no number after {before!r} in:\n{text}"
    return float(found[1])


def test_bench_train_prints_a_ratio_of_every_round_and_their_median(
    script: Script, data_root: Path
) -> None:
    small = ["--steps", 1, "--rounds", 2, "--warmup", 1, "--batch", 2, "--crop", 64, 96]
    printed = script(
        "bench_train", "--root", data_root / "camvid", "--network", "ours", "--threads", 1, *small
    )
    assert "parameters: plain 12,267,195, ours 12,267,195" in printed
    ratios = [number_after(printed, rf"round {number}: .* ratio") for number in (1, 2)]
    median = number_after(printed, "ratio ours/plain:")
    assert median == pytest.approx(sum(ratios) / 2, abs=0.002)
    assert median > 0


def test_bench_train_says_how_to_get_the_library_it_compares_with(
    script: Script, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("segmentation_models_pytorch"):
        pytest.skip("segmentation_models_pytorch is installed")
    with pytest.raises(SystemExit):
        script("bench_train", "--root", tmp_path, "--network", "smp")
    assert "pip install segmentation_models_pytorch, or take --network ours" in (
        capfd.readouterr().err
    )


@pytest.mark.slow
def test_bench_data_shows_every_way_and_what_a_cache_takes(script: Script, data_root: Path) -> None:
    small = ["--images", 2, "--samples", 2, "--rounds", 1, "--crop", 64]
    printed = script("bench_data", "--root", data_root, *small)
    ways = ("torchvision", "ours", "ours, normalised here", "ours, cached, warm")
    for way in (*ways, "ours, cached, warm, normalised", "ours, cached, cold"):
        assert len(re.findall(rf"^  {way} +[\d,.]+ samples/s +[\d.]+ x", printed, re.M)) == 2, way
    assert number_after(printed, "cityscapes: 2 images, crop 64, .*\n  torchvision") > 0
    assert "2,975 images would take" in printed
    assert "118,287 images would take" in printed


def test_bench_data_leaves_out_what_is_not_there(script: Script, tmp_path: Path) -> None:
    printed = script("bench_data", "--root", tmp_path)
    assert f"{tmp_path}/cityscapes: not there, left out" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("ways", [["segtrain"], ["segtrain", "pycocotools"]])
def test_bench_memory_tells_what_parent_and_workers_hold(
    script: Script, data_root: Path, ways: list[str]
) -> None:
    small = ["--images", 40, "--samples", 5, "--workers", 1]
    printed = script("bench_memory", "--root", data_root / "coco", *small, "--ways", *ways)
    for way in ways:
        assert number_after(printed, f"{way}: read in") >= 0
    masks = re.findall(r"worker 0: private .* MB; ([\d,]+) masks", printed)
    assert len(masks) == len(ways)
    assert len(set(masks)) == 1  # both ways decode the same objects
    assert int(masks[0]) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bench_paste_tells_time_memory_and_agreement(script: Script, memory: bool) -> None:
    pytest.importorskip("pycocotools")
    small = ["--masks", 2, "--rounds", 1, "--size", 200, 300]
    printed = script("bench_paste", *small, "--memory" if memory else "--no-memory")
    assert printed.startswith("2 masks of 28 x 28 in an image of 200 x 300")
    for threads in ("1 thread", "2 threads"):
        assert number_after(printed, rf"{threads} +segtrain") > 0
        assert number_after(printed, rf"{threads} +torchvision") > 0
    rows = re.findall(r"^(?:segtrain|torchvision) +\d+ masks +-?[\d.]+ MB", printed, re.M)
    assert len(rows) == (3 if memory else 0)
    assert ": mean" in printed
    assert " 0 of" in printed.splitlines()[-1]  # no pixel differs from a dense grid_sample


def test_bench_checksums_tells_a_ratio_of_each_kind(script: Script, data_root: Path) -> None:
    printed = script("bench_checksums", "--root", data_root, "--files", 1, "--rounds", 1)
    for kind in ("Cityscapes images", "Cityscapes masks", "Cityscapes samples", "VOC masks"):
        assert 0.3 < number_after(printed, rf"{kind} .* ratio") < 3


def test_bench_scoring_tells_the_times_of_three_kinds_of_map(script: Script) -> None:
    printed = script("bench_scoring", "--rounds", 1, "--images", 4, "--size", 128, 256)
    for kind in ("regions", "speckled", "noise"):
        table = printed.partition(f"\n{kind}")[2]
        assert number_after(table, "SemanticEvaluator.update") > 0
        assert number_after(table, "BoundaryEvaluator.update") > 0
    counted = re.findall(r"^ +(\d+) +[\d.]+$", printed.partition("images counted")[2], re.M)
    assert counted == ["1", "2", "4"]


def test_bench_crf_measures_alone_where_nothing_is_installed_to_compare_with(
    script: Script, data_root: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = data_root / "voc2012" / "VOCdevkit" / "VOC2012"
    printed = script("bench_crf", "--root", root, "--images", 1, "--rounds", 1)
    assert re.search(r"^2007_\d+ +\d+x\d+ +[\d.]+ s", printed, re.M)
    if importlib.util.find_spec("pydensecrf"):
        assert number_after(printed, "mean ratio") > 0
        return
    assert "pydensecrf2 is not installed (pip install pydensecrf2)" in printed
    with pytest.raises(SystemExit):
        script("bench_crf", "--golden", tmp_path / "crf.npz")
    assert "the numbers are pydensecrf2's" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bench_startup_compares_two_checkouts(script: Script) -> None:
    small = ["train.batch_size=2", "train.threads=1", "dataset.crop=[32,32]"]
    printed = script("bench_startup", "--other", SCRIPTS.parent, "--rounds", 1, *small)
    assert number_after(printed, "round 1: this") > 0
    assert 0.3 < number_after(printed, "rounds: wall") < 3  # the same code twice
    assert 0.3 < number_after(printed, "wall [0-9.]+, CPU") < 3


def documented() -> list[str]:
    """Every `python scripts/...` of README and docs, continued lines joined."""
    root = SCRIPTS.parent
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    return sorted(set(re.findall(r"python scripts/[^`\n&]+", text)))


@pytest.mark.parametrize("command", documented())
def test_a_script_takes_the_arguments_that_the_docs_give_it(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    _, path, *arguments = shlex.split(command, comments=True)
    module = importlib.import_module(Path(path).stem)
    module.parser.parse_intermixed_args(arguments)  # ends the program where one is unknown


def test_every_script_is_run_by_a_test() -> None:
    """Its name stands there, alone or with its suffix; test_packaging.py runs slurm.sh."""
    texts = "".join(
        path.read_text()
        for path in (
            *Path(__file__).parent.glob("*.py"),
            SCRIPTS.parent / "tests/test_packaging.py",
        )
    )
    scripts = [path for path in SCRIPTS.iterdir() if path.suffix in (".py", ".sh")]
    assert len(scripts) >= 12
    for path in scripts:
        assert f'"{path.stem}"' in texts or f'"{path.name}"' in texts, path.name


@pytest.fixture
def few(data_root: Path, tmp_path: Path) -> Path:
    """Two images of CamVid's train and two of its val."""
    for folder in ("train", "trainannot", "val", "valannot"):
        (tmp_path / "few" / folder).mkdir(parents=True)
        for path in sorted((data_root / "camvid" / folder).iterdir())[:2]:
            (tmp_path / "few" / folder / path.name).symlink_to(path)
    return tmp_path / "few"


@pytest.mark.slow
def test_compare_loop_trains_every_arm_once(script: Script, few: Path, tmp_path: Path) -> None:
    arms = ["ours", "plain", "plain_our_views", "plain_our_decay", "plain_same"]
    small = ["--seeds", 0, "--steps", 3, "--batch", 2, "--crop", 32, 48, "--threads", 1]
    call = ["compare_loop", "--root", few, "--out", tmp_path / "out", *small]
    printed = script(*call, "--arms", *arms)
    table = printed.partition("3 steps of 2")[2]
    assert ", crop 32 x 48, 1 threads" in table
    losses = {}
    for arm in arms:
        assert re.search(rf"^{arm} +0 +[\d.]+ +[\d.]+", table, re.M), arm
        losses[arm] = json.loads((tmp_path / "out" / f"seed0_{arm}.json").read_text())["losses"]
    # Fed alike, a plain loop does what `segtrain` does: the loop itself makes no difference.
    assert losses["plain_same"] == pytest.approx(losses["ours"], rel=1e-5)
    # One change each: the optimizer shows from the second update on.
    assert losses["plain_our_decay"][0] == losses["plain"][0]
    assert losses["plain_our_decay"][1:] != losses["plain"][1:]
    assert losses["plain_our_views"][0] == losses["plain_same"][0] != losses["plain"][0]
    assert script(*call) == f"3 steps of 2{table}"  # nothing is trained again


@pytest.mark.slow
def test_compare_loop_starts_from_weights(
    script: Script, few: Path, tmp_path: Path, data_root: Path
) -> None:
    weights = data_root / "weights" / "mobilenet_v2_imagenet_tvnorm.safetensors"
    small = ["--seeds", 0, "--steps", 2, "--batch", 2, "--crop", 32, 48, "--threads", 1]
    call = ["compare_loop", "--root", few, "--out", tmp_path / "out", *small, "--weights", weights]
    arms = ["imagenet", "scratch"]
    if importlib.util.find_spec("segmentation_models_pytorch"):
        arms += ["smp"]
    printed = script(*call, "--arms", *arms, "--against", "scratch")
    for arm in arms:
        assert re.search(rf"^{arm} +0 +[\d.]+ +[\d.]+", printed, re.M), arm
    assert "imagenet - scratch, mIoU:" in printed


def test_compare_loop_asks_for_what_an_arm_needs(
    script: Script, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("compare_loop", "--root", tmp_path, "--out", tmp_path, "--arms", "imagenet")
    assert "--arms imagenet: give --weights FILE" in capfd.readouterr().err


def test_compare_loop_tells_paired_differences_and_their_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    compare_loop = importlib.import_module("compare_loop")
    # The mean is 2, the deviation 1, and t for two degrees of freedom 4.3027: 4.3027 / sqrt(3).
    assert compare_loop.interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    for seed, arm, value in ((0, "ours", 0.3), (0, "plain", 0.4), (1, "ours", 0.5)):
        result = {"metrics": {"mIoU": value, "pixAcc": 0.5}, "losses": [1.0], "seconds": 1.0}
        (tmp_path / f"seed{seed}_{arm}.json").write_text(json.dumps(result))
    # The last quarter of the losses counts.
    assert compare_loop.numbers({"metrics": {}, "losses": [4.0, 3.0, 2.0, 1.0]}) == {"loss": 1.0}
    assert compare_loop.numbers({"metrics": {}, "losses": [5, 4, 3, 2, 1, 1, 1, 2]})["loss"] == 1.5
    printed = compare_loop.table(tmp_path, "plain")
    assert "ours - plain, mIoU: -0.1000  mean -0.1000\n" in printed  # seed 1 has no pair yet


@pytest.mark.slow
def test_compare_mask_rcnn_measures_both_networks(
    script: Script, data_root: Path, tmp_path: Path
) -> None:
    coco = data_root / "coco"
    source = coco / "annotations" / "instances_train2017.json"
    script("coco_subset", source, tmp_path / "two.json", "--images", 2)
    small = ["--steps", 3, "--every", 2, "--batch", 2, "--threads", 1]
    call = ["compare_mask_rcnn", tmp_path / "two.json", coco / "train2017", *small]
    printed = script(*call, "--out", tmp_path / "out")
    for arm in ("ours", "torchvision"):
        line = rf"^seed 0 {arm} +AP 0.5 at step never  2:0\.0\d\d 3:0\.0\d\d$"
        assert re.search(line, printed, re.M), arm


def test_compare_mask_rcnn_tells_when_the_goal_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    compare = importlib.import_module("compare_mask_rcnn")
    assert compare.reached([(40, 0.1), (80, 0.5), (120, 0.4)]) == "80"
    assert compare.reached([(40, 0.1), (80, 0.49)]) == "never"


@pytest.mark.slow
def test_bench_sweep_prints_both_ways_of_every_round_and_the_ratios(script: Script) -> None:
    tiny = ["model.width=4", "dataset.crop=[32,32]", "dataset.size=[32,32]", "dataset.train=4"]
    tiny += ["dataset.val=1", "train.steps=1", "train.batch_size=2"]
    printed = script("bench_sweep", "--rounds", 1, "--runs", 2, *tiny)
    line = next(line for line in printed.splitlines() if line.startswith("round 1:"))
    wall = number_after(line, "launcher") / number_after(line, "by hand")
    assert number_after(printed, "rounds: wall") == pytest.approx(wall, abs=0.01)
