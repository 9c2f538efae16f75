"""Two runs are compared image by image: the numbers are numpy's and scipy's.

Members of the kind "an images.csv that is not what it seems": another score, other images, an image
twice, no number, rows of other lengths, no file, columns of other classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from commands.test_report_page import Page
from commands.test_report_settings import evaluate, make_run

from segtrain.commands import report_images
from segtrain.commands.report import report
from segtrain.commands.report_images import compare, interval, read_scores
from segtrain.commands.report_runs import read_run
from segtrain.commands.report_settings import Setting

CLASSES = ("road", "sky")


def scored(folder: Path, score: float, values: np.ndarray, **settings: object) -> Path:
    """A run with an evaluation whose images score `values`, one column."""
    run = make_run(folder, score, **settings)
    evaluate(run, "e", score)
    rows = "".join(f"{index},{value!r}\n" for index, value in enumerate(values.tolist()))
    (run / "eval" / "e" / "images.csv").write_text(f"image,mIoU\n{rows}")
    return run


def setting(*runs: Path) -> Setting:
    return Setting([read_run(run, run.name) for run in runs])


def counted(folder: Path, seed: int) -> tuple[Path, np.ndarray]:
    """A run with an evaluation of pixels (200, 2, K): intersections and unions of its images."""
    unions = np.random.default_rng(0).integers(0, 100, (200, len(CLASSES)))
    shares = np.random.default_rng(seed).normal(0.5, 0.1, unions.shape)
    both = (unions * shares.clip(0, 1)).astype(int)
    run = make_run(folder, 0.5, optimizer__lr=seed)
    evaluate(run, "e", 0.5)
    names = [f"{part}/{name}" for part in ("intersection", "union") for name in CLASSES]
    lines = [",".join(["image", "mIoU", *names])]
    for index in range(len(unions)):
        cells = [0.5, *both[index].tolist(), *unions[index].tolist()]
        lines.append(",".join(map(str, [index, *cells])))
    (run / "eval" / "e" / "images.csv").write_text("\n".join(lines) + "\n")
    return run, np.stack([both, unions], axis=1)


def test_the_interval_is_that_of_scipys_bootstrap(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    second = generator.uniform(0.2, 0.9, 200)
    first = second + generator.normal(0.01, 0.05, 200)
    a = setting(scored(tmp_path / "a", 0.5, first))
    b = setting(scored(tmp_path / "b", 0.4, second))
    found = compare(a, b, "e")
    assert found is not None
    (difference,) = found.differences
    assert difference.value == pytest.approx(np.mean(first - second), abs=1e-15)
    reference = scipy.stats.bootstrap(
        (first - second,), np.mean, n_resamples=10_000, method="percentile", rng=7
    ).confidence_interval
    assert (difference.low, difference.high) == pytest.approx(tuple(reference), abs=1e-3)
    again = compare(a, b, "e")
    assert again is not None
    assert again.differences == found.differences


def test_the_interval_of_the_sets_miou_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    (a, first), (b, second) = (counted(tmp_path / str(seed), seed) for seed in (1, 2))
    found = compare(setting(a), setting(b), "e")
    assert found is not None
    difference, own = found.differences
    assert (difference.of, own.of) == ("mIoU of the set", "mean of the images' own mIoU")
    assert (own.value, own.low, own.high) == (0, 0, 0)

    def miou(counts: np.ndarray) -> float:
        both, unions = counts.sum(axis=0)
        return float(np.mean(both / unions))

    assert difference.value == pytest.approx(miou(first) - miou(second), abs=1e-12)
    generator = np.random.default_rng(11)
    drawn = []
    for _ in range(10_000):
        index = generator.integers(0, len(first), len(first))
        drawn.append(miou(first[index]) - miou(second[index]))
    reference = np.quantile(drawn, [0.025, 0.975])
    assert (difference.low, difference.high) == pytest.approx(reference, abs=1e-3)


def test_equal_runs_give_an_interval_with_zero(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(50)
    a = setting(scored(tmp_path / "a", 0.5, values))
    b = setting(scored(tmp_path / "b", 0.5, values))
    found = compare(a, b, "e")
    assert found is not None
    assert found.differences[0].holds_zero
    assert found.most_changed() == []
    assert "better on 0, worse on 0;" in found.in_words()


def test_runs_of_one_quality_differ_by_chance_only(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(40):
        low, high = interval(generator.normal(0, 0.1, 60), draws=500)
        held += low <= 0 <= high
    assert 34 <= held <= 40  # 95 % of 40 is 38


def test_seeds_of_a_setting_are_averaged_by_image(tmp_path: Path) -> None:
    first = [
        scored(tmp_path / f"a{seed}", 0.5, np.array([0.2, 0.6 + seed / 10]), train__seed=seed)
        for seed in (0, 1)
    ]
    second = scored(tmp_path / "b", 0.4, np.array([0.3, 0.3]))
    found = compare(setting(*first), setting(second), "e")
    assert found is not None
    assert found.changes.tolist() == pytest.approx([-0.1, 0.35])
    assert [found.images[index] for index in found.most_changed()] == ["1", "0"]


def test_only_images_that_both_scored_are_compared_and_the_others_counted(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", 0.5, np.array([0.5, 0.5, np.nan, 0.5]))
    b = scored(tmp_path / "b", 0.5, np.array([0.25, 0.25, 0.25]))
    found = compare(setting(a), setting(b), "e")
    assert found is not None
    assert found.images == ["0", "1"]
    assert found.left_out == 2
    assert "2 images are not in both" in found.in_words()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image,mIoU\n",
        "name,mIoU\n0,0.5\n",
        "image\n0\n",
        "image,mIoU\n0,0.5\n0,0.6\n",
        "image,mIoU\n0,half\n",
        "image,mIoU\n0\n",
        "image,mIoU\n0,0.5,0.6\n",
        "image,mIoU\n\x000,0.5\n1",
        '"image,mIoU\n0,0.5\n',
    ],
)
def test_scores_that_cannot_be_read_are_none(tmp_path: Path, text: str) -> None:
    run = scored(tmp_path / "a", 0.5, np.array([0.5]))
    (run / "eval" / "e" / "images.csv").write_text(text)
    (evaluation,) = read_run(run, "a").evaluations
    assert read_scores(evaluation) is None
    other = scored(tmp_path / "b", 0.5, np.array([0.5]))
    assert compare(setting(run), setting(other), "e") is None
    report([tmp_path])


def test_another_score_is_not_compared_and_other_classes_only_by_image(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", 0.5, np.array([0.5]))
    b = scored(tmp_path / "b", 0.5, np.array([0.5]))
    (b / "eval" / "e" / "images.csv").write_text("image,AP\n0,0.5\n")
    assert compare(setting(a), setting(b), "e") is None
    text = "image,mIoU,intersection/road,union/sky\n0,0.5,1,2\n"
    (b / "eval" / "e" / "images.csv").write_text(text)
    found = compare(setting(a), setting(b), "e")
    assert found is not None
    assert [difference.of for difference in found.differences] == ["mean of the images' own mIoU"]


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored(tmp_path / "a", 0.5, np.array([0.5]))
    monkeypatch.setattr(report_images, "MAX_BYTES", 3)
    assert read_scores(read_run(run, "a").evaluations[0]) is None


def test_the_terminal_and_the_page_say_it(tmp_path: Path) -> None:
    values = np.linspace(0.1, 0.8, 30)
    scored(tmp_path / "a", 0.6, values + 0.1, optimizer__lr=0.1)
    scored(tmp_path / "b", 0.5, values, optimizer__lr=0.2)
    printed = report([tmp_path])
    assert (
        "\nimage by image (eval e): optimizer.lr=0.1 minus optimizer.lr=0.2: 30 images, better on "
        "30, worse on 0; 95 % intervals over images: mean of the images' own mIoU +0.1000 "
        "[+0.1000, +0.1000], which does not hold 0\n" in printed
    )
    page = Page(tmp_path / "report.html")
    assert "Image by image" in page.seen
    (plot,) = [plot for plot in page.data["plots"] if plot["kind"] == "histogram"]
    assert sum(plot["counts"]) == 30
    assert "e: optimizer.lr=0.1 minus optimizer.lr=0.2" in page.seen
