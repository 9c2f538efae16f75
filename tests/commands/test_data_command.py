"""`segdata stats`, `browse` and `prepare` on a small data set whose numbers are known by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commandline import done, save, trained, typed
from PIL import Image

NAMES = (
    "{id: 0, name: ground}, {id: 1, name: wall}, {id: 2, name: door}, {id: 9, name: roof}, "
    "{id: 255, ignore: true}"
)
LABELS = f"dataset.labels=[{NAMES}]"
SMALL = [
    "train.steps=3",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.threads=1",
    "train.eval_every=3",
    "dataset.crop=[24,24]",
    "writer=[]",
    "log.images=0",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Train: 8 x 10 all ground and void, 8 x 10 half wall, 6 x 10 with ground, wall and door.

    No roof anywhere.
    """
    root = tmp_path_factory.mktemp("houses")
    masks = {
        "a": np.zeros((8, 10)),
        "b": np.zeros((8, 10)),
        "c": np.zeros((6, 10)),
        "d": np.zeros((40, 30)),
    }
    masks["a"][0] = 255
    masks["b"][4:] = 1
    masks["c"][:3] = 1
    masks["c"][3] = 2
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        split = "val" if name == "d" else "train"
        save(root / "masks" / split / f"{name}.png", mask.astype(np.uint8))
        save(
            root / "images" / split / f"{name}.png",
            rng.integers(0, 256, (*mask.shape, 3), np.uint8),
        )
    return ["dataset=folder", f"dataset.root={root}", LABELS]


def test_stats_counts_by_hand_and_gives_weights_that_train(
    houses: list[str], tmp_path: Path
) -> None:
    said = done("segdata", "stats", *houses, f"output={tmp_path / 'stats.txt'}")
    assert (tmp_path / "stats.txt").read_text() == said
    of_train, of_val = said.split("val: 1 images")
    assert "smallest 10 x 6, median 10 x 8, largest 10 x 8; 2 different" in of_train
    rows = {
        line.split()[0]: line.split()[1:]
        for line in of_train.splitlines()
        if re.match(r"  \w+ +[\d,]+", line)
    }
    # labelled pixels: 70 + 40 + 20 ground, 40 + 30 wall, 10 door
    assert rows["ground"] == ["130", "61.905", "3"]
    assert rows["wall"] == ["70", "33.333", "2"]
    assert rows["door"] == ["10", "4.762", "1"]
    assert rows["roof"] == ["0", "0.000", "0"]
    assert rows["ignored"] == ["10"]
    assert "1,200" in of_val
    assert "loss.class_weights" not in of_val
    # shares of the labelled pixels of the images that hold the class: 130/210, 70/140, 10/60; the
    # median is 1/2
    weights, roots = (
        json.loads(found) for found in re.findall(r"loss\.class_weights=(\[.*\])", of_train)
    )
    assert weights == pytest.approx([0.5 * 210 / 130, 1, 3, 1], rel=1e-3)
    assert roots == pytest.approx(np.sqrt(weights), rel=1e-3)
    pasted = re.findall(r"loss\.class_weights=\[.*\]", of_train)[1]
    trained(tmp_path / "run", *SMALL, *houses, pasted)
    assert "class_weights" in (tmp_path / "run" / "config.yaml").read_text()


def test_browse_shows_every_sample_as_stored_and_as_augmented(
    houses: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    said = done("segdata", "browse", *houses, "dataset.crop=[24,24]", f"output={page}")
    assert said == f"{page}: 3 samples of train, each as stored and as augmented for training\n"
    text = page.read_text()
    assert [text.index(f"<h3>{name}</h3>") for name in "abc"] == sorted(
        text.index(f"<h3>{n}</h3>") for n in "abc"
    )
    encoded = re.findall(r"base64,([^\"]+)\"", text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(part))).size for part in encoded]
    # of each sample: image and overlay as stored, image and overlay as augmented, legend
    assert [sizes[5 * k : 5 * k + 4] for k in range(3)] == [
        [(10, 8), (10, 8), (24, 24), (24, 24)],
        [(10, 8), (10, 8), (24, 24), (24, 24)],
        [(10, 6), (10, 6), (24, 24), (24, 24)],
    ]
    stored = np.array(Image.open(io.BytesIO(base64.b64decode(encoded[0]))).convert("RGB"))
    root = Path(houses[1].partition("=")[2])
    assert (stored == np.array(Image.open(root / "images" / "train" / "a.png"))).all()


def test_a_prepared_cache_trains_to_the_same_bits_and_is_refused_after_a_change(
    houses: list[str], tmp_path: Path
) -> None:
    cache = f"dataset.cache={tmp_path / 'cache'}"
    said = done("segdata", "prepare", *houses, cache)
    assert "train: 3 images" in said
    assert "val: 1 images" in said
    for name, setting in (("files", []), ("cached", [cache])):
        trained(tmp_path / name, *SMALL, *houses, *setting)
    files, cached = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("files", "cached")
    )
    assert files == cached
    assert files.count(b"\n") >= 2
    root = Path(houses[1].partition("=")[2])
    mask = root / "masks" / "train" / "b.png"
    before = mask.read_bytes()
    save(mask, np.ones((8, 10), np.uint8))
    try:
        ended = typed("segtrain", f"hydra.run.dir={tmp_path / 'late'}", *SMALL, *houses, cache)
    finally:
        mask.write_bytes(before)
    assert ended.code == 65, ended.err
    assert "b.png" in ended.err
    assert "segdata prepare" in ended.err
    assert len(ended.err.splitlines()) == 1
