"""The page of segreport: one file, whole, whatever the runs hold.

Members of the kind "what would make the page need something else, or be something else": pictures,
fonts and scripts from elsewhere; markup in values, class names, names of folders, notes and JSON;
pictures that are none, that claim a gigapixel, or that are too many for a mail.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.test_report_settings import evaluate, make_run
from PIL import Image

from segtrain.commands import report_page
from segtrain.commands.report import report
from segtrain.errors import DataError
from segtrain.visualization.embedded import data_url

EVIL = "</script><script>alert(1)</script><img src=http://x/y.png onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would load, the scripts, and the text that is seen."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.seen = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.inside = tag
        self.loads += [v for key in ("src", "href", "srcset") if (v := values.get(key))]
        self.handlers += [key for key in values if key.startswith("on")]
        self.scripts += [""] if tag == "script" else []
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.seen += data


def draw(path: Path, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_the_page_loads_nothing_and_holds_its_pictures_and_plotly(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path / name, 0.5, optimizer__lr=0.1 if name == "a" else 0.2)
        draw(run / "samples" / "im#1.png")
    report([tmp_path], tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    pictures = [link for link in page.loads if not link.startswith("#")]
    assert len(pictures) == 2
    assert all(link.startswith("data:image/webp;base64,") for link in pictures)
    assert page.policy.startswith("default-src 'none'; script-src 'unsafe-inline';")
    assert "http" not in page.policy
    assert len(page.scripts) == 3
    assert "plotly.js v" in page.scripts[2][:100]


def test_the_curves_of_the_page_are_those_of_the_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path / str(seed), 0.5, train__seed=seed)
        lines = [
            {"step": step, "phase": phase, name: step / 7 + seed}
            for phase, name in (("train", "loss"), ("val", "mIoU"))
            for step in (10, 20, 30)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([tmp_path])
    page = Page(tmp_path / "report.html")
    assert [setting["on"] for setting in page.data["settings"]] == [True]
    score, loss = page.data["plots"]
    assert (score["title"], loss["title"]) == ("validation mIoU", "training loss")
    for plot in (score, loss):
        assert [line["x"] for line in plot["lines"]] == [[10, 20, 30]] * 2
        for seed, line in enumerate(plot["lines"]):
            assert line["name"].endswith(f"seed {seed}")
            expected = [10 / 7 + seed, 20 / 7 + seed, 30 / 7 + seed]
            assert line["y"] == pytest.approx(expected, rel=1e-5)


def test_many_runs_share_the_points_that_a_page_opens_quickly_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "ALL_POINTS", 300)
    monkeypatch.setattr(report_page, "MIN_POINTS", 5)
    for seed in range(10):
        run = make_run(tmp_path / str(seed), 0.5, optimizer__lr=seed)
        lines = [{"step": step, "phase": "train", "loss": 1.0} for step in range(1, 101)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([tmp_path])
    page = Page(tmp_path / "report.html")
    (plot,) = page.data["plots"]
    assert [len(line["x"]) for line in plot["lines"]] == [10] * 10
    assert all(line["x"][-1] == 100 for line in plot["lines"])
    assert sum(setting["on"] for setting in page.data["settings"]) == 8


def test_what_runs_hold_is_text_wherever_it_stands(tmp_path: Path) -> None:
    evil = EVIL.replace("/", "\N{DIVISION SLASH}")  # a folder's name holds no slash
    for name, value in (("a", EVIL), (f"b{evil}", "plain")):
        run = make_run(
            tmp_path / name, 0.5, (f"model.backbone={EVIL}", f"x{EVIL}=1"), model__backbone=value
        )
        lines = [{"step": 1, "phase": "val", "mIoU": 0.5, f"IoU/{EVIL}": 0.25, EVIL: 1}]
        (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\nnot json\n")
        summary = {"status": EVIL, "metric": EVIL, "final": {f"IoU/{EVIL}": 0.5, EVIL: 0.5}}
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "eval" / f"e{evil}").mkdir(parents=True)
        content = {EVIL: 0.5, "protocol": {"rules": EVIL, "split": EVIL, "inference": {EVIL: EVIL}}}
        (run / "eval" / f"e{evil}" / "metrics.json").write_text(json.dumps(content))
        draw(run / "samples" / f"{evil}.png")
    report([tmp_path], tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert len(page.scripts) == 3
    assert page.handlers == []
    assert all(link.startswith(("#", "data:")) for link in page.loads)
    assert EVIL in page.seen
    assert any(EVIL in setting["name"] for setting in page.data["settings"])


def test_a_picture_that_cannot_be_read_is_said_and_costs_no_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0.5)
    draw(run / "samples" / "good.png")
    (run / "samples" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (run / "samples" / "svg.png").write_text("<svg onload=alert(1)>")
    report([run])
    page = Page(run / "report.html")
    assert page.seen.count("cannot be read") == 2
    assert len([link for link in page.loads if link.startswith("data:")]) == 1


def test_pictures_end_where_a_mail_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "PICTURE_BYTES", 1)
    run = make_run(tmp_path / "a", 0.5)
    for name in "abc":
        draw(run / "samples" / f"{name}.png")
    report([run])
    page = Page(run / "report.html")
    assert len([link for link in page.loads if link.startswith("data:")]) == 1
    assert "2 more pictures are left out" in page.seen


def test_a_picture_is_made_small_and_a_gigapixel_is_not_read(tmp_path: Path) -> None:
    draw(tmp_path / "wide.png", (300, 100))
    assert data_url(tmp_path / "wide.png", 60).startswith("data:image/webp;base64,")
    assert len(data_url(tmp_path / "wide.png", 60)) < len(data_url(tmp_path / "wide.png", 300)) / 4
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    (tmp_path / "bomb.png").write_bytes(bomb + struct.pack(">I", zlib.crc32(chunk)))
    with pytest.raises(DataError, match=r"bomb\.png: "):
        data_url(tmp_path / "bomb.png", 60)


def test_the_size_of_a_page_is_that_of_plotly_and_little_more(tmp_path: Path) -> None:
    report([make_run(tmp_path / "a", 0.5)])
    size = (tmp_path / "a" / "report.html").stat().st_size
    assert size - len(report_page.get_plotlyjs().encode()) < 40_000


def cells_of(path: Path, name: str) -> list[list[str]]:
    """The cells of one table of a page, by row."""
    page = path.read_text(encoding="utf-8")
    start = page.index(f'id="{name}"')
    rows = re.findall(r"<tr.*?</tr>", page[start : page.index("</table>", start)], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_heat_table_has_means_over_seeds_and_what_the_best_has_more(tmp_path: Path) -> None:
    for lr, seed, road, score in ((0.1, 0, 0.5, 0.6), (0.1, 1, 0.7, 0.6), (0.2, 0, 0.65, 0.5)):
        run = make_run(tmp_path / f"{lr}-{seed}", score, optimizer__lr=lr, train__seed=seed)
        final = {"mIoU": score, "IoU/road": road, "IoU/sky": 0.9}
        if lr == 0.2:
            del final["IoU/sky"]
        (run / "summary.json").write_text(json.dumps({"status": "complete", "final": final}))
    report([tmp_path])
    assert cells_of(tmp_path / "report.html", "by-class") == [
        ["class", "IoU optimizer.lr=0.1", "IoU optimizer.lr=0.2", "first minus second"],
        ["road", "60.0", "65.0", "-5.0"],
        ["sky", "90.0", "-", "-"],
    ]


def test_worst_images_stand_side_by_side_and_what_changed_most_comes_first(tmp_path: Path) -> None:
    changes = {"a/easy": 0.01, "a/hard": 0.2, "a/odd": -0.4}
    for lr, score in ((0.1, 0.6), (0.2, 0.5)):
        run = make_run(tmp_path / str(lr), score, optimizer__lr=lr)
        evaluate(run, "e", score)
        values = {name: 0.5 + change * (lr == 0.1) for name, change in changes.items()}
        rows = "".join(f"{name},{value}\n" for name, value in values.items())
        (run / "eval" / "e" / "images.csv").write_text(f"image,mIoU\n{rows}")
        for rank, name in enumerate(("easy", "hard", "odd")[:: 1 if lr == 0.1 else -1]):
            draw(run / "eval" / "e" / "worst" / f"{rank:02d}_{name}.png")
        draw(run / "eval" / "e" / "confusion.png")
    report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h4>(.*?)</h4>", page) == ["odd", "hard", "easy", "confusion"]
    rows = re.findall(r'<div class="row">(.*?)</div>', page)
    both = ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert [re.findall(r"<figcaption>(.*?)</figcaption>", row) for row in rows] == [both] * 4
    changed = cells_of(tmp_path / "out" / "report.html", "by-change")
    assert [row[0] for row in changed] == ["image", "a/odd", "a/hard", "a/easy"]
    assert changed[1][1:] == ["-0.4", "0.1", "0.5"]


def test_what_is_the_same_of_all_settings_stands_below_the_table_and_takes_no_column(
    tmp_path: Path,
) -> None:
    for index, rate in enumerate((0.1, 0.2)):
        run = make_run(tmp_path / str(index), 0.5, optimizer__lr=rate)
        summary = json.loads((run / "summary.json").read_text())
        told = {"parameters": 1000, "images_per_second": 10.0 + index}
        (run / "summary.json").write_text(json.dumps({**summary, **told}))
    report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    table = re.search(r'<table id="by-setting">.*?</thead>', text, re.S)
    assert table is not None
    heads = re.findall(r"<th data-sort[^>]*>([^<]*)<", table[0])
    assert heads == ["optimizer.lr", "best mIoU", "images/s", "run"]
    seen = Page(tmp_path / "out" / "report.html").seen
    assert "the same in all: at step 30, final as best, val loss 1.0000, parameters 1,000\n" in seen
    report([tmp_path / "0"], tmp_path / "one")
    assert "the same in all" not in (tmp_path / "one" / "report.html").read_text("utf-8")
