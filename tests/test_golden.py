"""Golden bytes: training and evaluation give what they gave before the redesign.

See tests/golden/runs.py, losses.py and stored.py. On another machine type, or with another version
of torch, the losses of the first step are compared to 1e-6, and bytes are not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from golden import losses, runs, stored
from rows import amount

MODELS = sorted(path.stem for path in (runs.ROOT / "conf" / "model").glob("*.yaml"))
QUICK_RUNS = ("unet_32",)
QUICK_EXAMPLE = "unet_32"
# Of the golden losses, those that cost least, with half of the systems in each precision.
CHEAP = [
    *(f"{system}.fp32" for system in ("unet", "pspnet", "deeplabv3plus", "mask_rcnn", "deeplabv3")),
    *(f"{system}.bf16" for system in ("unet", "fcn", "parsenet", "encnet", "panet")),
]


def marked(names: list[str], quick: tuple[str, ...]) -> list[object]:
    """All names as cases, slow but for the quick ones."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(runs.NAMES, QUICK_RUNS))
def test_a_golden_run_trains_to_the_same_bytes(name: str) -> None:
    assert runs.differences(name) == []


@pytest.mark.row("R29")
@pytest.mark.parametrize(
    "name", amount(marked(losses.NAMES, ("unet.fp32",)), marked(CHEAP, ()), losses.NAMES)
)
def test_the_losses_of_thirty_steps_are_what_they_were(name: str) -> None:
    assert losses.differences(name) == []


@pytest.mark.row("R30")
@pytest.mark.parametrize(
    "name",
    amount(
        marked(list(stored.EXAMPLES), (QUICK_EXAMPLE,)), list(stored.EXAMPLES)[:2], stored.EXAMPLES
    ),
)
def test_a_stored_run_of_before_gives_the_numbers_it_gave(name: str) -> None:
    assert stored.differences(name) == []


def test_every_system_has_golden_losses_in_both_precisions() -> None:
    assert len(losses.SYSTEMS) == 12
    assert {path.stem for path in losses.STORED.glob("*.json")} == set(losses.SYSTEMS)
    for system in losses.SYSTEMS:
        found = losses.stored(system)["losses"]
        steps = 4 if system == "deconvnet" else losses.STEPS
        assert [len(set(found[p])) for p in losses.PRECISIONS] == [steps, steps], system
        assert found["fp32"] != found["bf16"]


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
