"""A class list by numbers, `{0: a, 3: b, 255: null}`, comes back from a checkpoint.

Numbers are sorted otherwise than their texts, 3 before 255 and "255" before "3": a seal over the
one order calls the other damaged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from commandline import SMALL_RUN, done, save, trained

from segtrain.checkpoints import manifest

BODY = {"files": {}, "format": manifest.FORMAT, "meta": {"labels": {0: "a", 3: "b", 255: None}}}


def test_a_manifest_with_numbers_as_keys_is_sound(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000007"
    folder.mkdir()
    (folder / manifest.MANIFEST).write_bytes(manifest.encode({**BODY, "step": 7}))
    assert manifest.inspect(folder).meta == {"labels": {"0": "a", "3": "b", "255": None}}


def test_a_manifest_written_in_the_order_of_numbers_is_read_too(tmp_path: Path) -> None:
    body = {**BODY, "step": 7}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True, indent=1).encode()).hexdigest()
    folder = tmp_path / "step_00000007"
    folder.mkdir()
    written = json.dumps({**body, "seal": seal}, sort_keys=True, indent=1)
    assert '"3": "b",\n   "255": null' in written
    (folder / manifest.MANIFEST).write_text(written)
    assert manifest.inspect(folder).step == 7


def test_a_run_with_such_a_class_list_is_measured_resumed_and_extended(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.array([0, 3, 255], np.uint8)
    for split in ("train", "val"):
        for name in "ab":
            save(
                tmp_path / f"images/{split}/{name}.png", rng.integers(0, 256, (32, 32, 3), np.uint8)
            )
            save(tmp_path / f"masks/{split}/{name}.png", rng.choice(values, (32, 32)))
    labels = "dataset.labels={0: ground, 3: road, 255: null}"
    words = ["dataset=folder", f"dataset.root={tmp_path}", labels, *SMALL_RUN, "train.steps=2"]
    run = trained(tmp_path / "run", *words, "train.eval_every=1", "log.images=0")
    assert "mIoU" in done("segeval", f"checkpoint={run}", "eval.worst=0")
    assert "complete already" in done("segtrain", f"resume={run}")
    assert "steps 2 to 4" in done("segtrain", f"extend={run}", "train.steps=4")
