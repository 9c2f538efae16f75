"""Golden bytes: training and evaluation give what they gave before the redesign.

See tests/golden/runs.py and stored.py. On another machine type, or with another version of torch,
the losses of the first step are compared to 1e-6, and bytes are not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from golden import runs, stored

MODELS = sorted(path.stem for path in (runs.ROOT / "conf" / "model").glob("*.yaml"))
QUICK_RUNS = ("unet_32", "mask_rcnn_r18")
QUICK_EXAMPLE = "unet_32"


def marked(names: list[str], quick: tuple[str, ...]) -> list[object]:
    """All names as cases, slow but for the quick ones."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(runs.NAMES, QUICK_RUNS))
def test_a_golden_run_trains_to_the_same_bytes(name: str) -> None:
    assert runs.differences(name) == []


@pytest.mark.row("R30")
@pytest.mark.parametrize("name", marked(list(stored.EXAMPLES), (QUICK_EXAMPLE,)))
def test_a_stored_run_of_before_gives_the_numbers_it_gave(name: str) -> None:
    assert stored.differences(name) == []


def test_every_model_has_a_golden_run() -> None:
    assert set(MODELS) <= set(runs.NAMES)
    assert {path.stem for path in runs.STORED.glob("*.json")} == set(runs.NAMES)
    assert {path.stem for path in stored.STORED.glob("*.json")} == set(stored.EXAMPLES)


@pytest.mark.parametrize("name", runs.NAMES)
def test_a_golden_config_is_whole_and_resolved(name: str) -> None:
    text = json.dumps(runs.stored(name)["config"])
    assert "${" not in text
    assert "???" not in text
    assert '"weights": null' in text or name.startswith("unet")


@pytest.mark.parametrize("model", runs.TWICE)
def test_a_run_resumed_in_the_middle_ends_with_the_bytes_of_one_that_was_not(model: str) -> None:
    """Of the stored records: the test of golden runs says that they are still true."""
    whole = runs.stored(model)
    resumed = runs.stored(f"{model}.resumed")
    for part in ("numbers", "model", "optimizer"):
        assert whole[part] == resumed[part]


@pytest.mark.parametrize("name", stored.EXAMPLES)
def test_a_stored_example_says_something(name: str) -> None:
    """Several classes are predicted, or some objects found: all zero would guard nothing."""
    assert re.search(r"0\.\d", stored.meaningful(stored.stored(name)))


def test_the_generated_objects_are_what_they_were(tmp_path: Path) -> None:
    assert runs.write_coco(tmp_path) == runs.DATA_HASH


def test_a_changed_loss_and_a_changed_weight_are_told() -> None:
    old = runs.stored(QUICK_RUNS[0])["numbers"]
    loss = float.fromhex(old["train 3"]["loss"])
    for factor, told in ((1 + 1e-15, 0), (1 + 1e-5, 1)):
        new = {**old, "train 3": {**old["train 3"], "loss": (loss * factor).hex()}}
        assert len(runs.numbers_apart(old, new, exact=False)) == told
        assert len(runs.numbers_apart(old, new, exact=True)) == 1
    hashes = {"a": "float32 2 1", "b": "float32 2 2"}
    assert runs.hashes_apart("model", hashes, {"a": "float32 2 1", "c": "float32 2 2"}) == [
        "model b: missing now",
        "model c: not there then",
    ]
    assert len(runs.hashes_apart("model", hashes, {**hashes, "b": "float32 2 3"})) == 1
