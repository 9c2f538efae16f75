"""A checkpoint of another model (row R31): a table of what differs, and nothing loaded by halves.

The checkpoint is whole and its hashes are right, so that only what it holds can be refused.

Members: a missing tensor, a missing part, an extra tensor, another shape, a transposed one, other
names, nothing at all, whole numbers or complex ones for weights, a tensor in a list; the state of
another optimizer, or of the optimizer of another network. Read as they are: float64 of the
same values, and tensors saved on a GPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SMALL_RUN, done, trained, typed

from segtrain.checkpoints import reading, writing

WORDS = [
    *SMALL_RUN,
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.train=4",
    "dataset.val=2",
    "train.steps=2",
    "train.eval_every=1",
    "train.keep=1",
    "train.precision=fp32",
    "train.threads=1",
    "train.verify=false",
    "log.images=0",
]
Payload = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("wrong") / "run", *WORDS)


def first(state: dict[str, torch.Tensor], last: str = "weight") -> str:
    """Return the name of the first tensor of a kind."""
    return next(key for key in state if key.endswith(last) and state[key].ndim == 4)


def without(state: Payload) -> Payload:
    return {key: value for key, value in state.items() if key != first(state)}


def without_a_part(state: Payload) -> Payload:
    return {key: value for key, value in state.items() if "classifier" not in key}


def with_one_more(state: Payload) -> Payload:
    return {**state, "aux.weight": torch.zeros(3)}


def of_another_shape(state: Payload) -> Payload:
    return {**state, first(state): torch.zeros(7, *state[first(state)].shape[1:])}


def transposed(state: Payload) -> Payload:
    return {**state, first(state): state[first(state)].transpose(0, 1).contiguous()}


def of_other_names(state: Payload) -> Payload:
    return {f"net.{key}": value for key, value in state.items()}


def empty(state: Payload) -> Payload:
    return {}


def of_whole_numbers(state: Payload) -> Payload:
    return {**state, first(state): state[first(state)].to(torch.int64)}


def of_complex_numbers(state: Payload) -> Payload:
    return {**state, first(state): state[first(state)].to(torch.complex64)}


def in_a_list(state: Payload) -> Payload:
    return {**state, first(state): [state[first(state)]]}


# What is wrong -> a line of the answer.
WRONG: dict[Callable[[Payload], Payload], str] = {
    without: "0.weight: not in the file",
    without_a_part: "classifier: 0 of 2 tensors",
    with_one_more: "aux.weight: not in the model",
    of_another_shape: "0.weight: model (4, 3, 3, 3), file (7, 3, 3, 3)",
    transposed: "0.weight: model (4, 3, 3, 3), file (3, 4, 3, 3)",
    of_other_names: "0 tensors fit",
    empty: "not a mapping of names to tensors",
    of_whole_numbers: "0.weight: model float32, file int64",
    of_complex_numbers: "0.weight: model float32, file complex64",
    in_a_list: "not a plain mapping of names to tensors",
}


def changed(run: Path, place: Path, name: str, change: Callable[[Payload], Any]) -> Path:
    """Return a copy of a run, unfinished, whose checkpoint holds something else under `name`."""
    shutil.copytree(run, place)
    (place / "summary.json").unlink()
    found = reading.find(place, "latest")
    payload = {each: found.read(each) for each in ("model", "optimizer", "precision")}
    payload[name] = change(payload[name])
    shutil.rmtree(place / "checkpoints")
    writing.save(place / "checkpoints", found.step, payload, found.meta)
    return place


QUICK = without
SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in WRONG if change is not QUICK]


@pytest.mark.row("R31")
@pytest.mark.parametrize("change", [QUICK, *SLOW], ids=lambda change: change.__name__)
def test_weights_that_are_not_the_models_are_refused_with_a_table(
    run: Path, tmp_path: Path, change: Callable[[Payload], Payload]
) -> None:
    place = changed(run, tmp_path / "run", "model", change)
    before = (place / "metrics.jsonl").read_bytes()
    for name, word in (("segeval", f"checkpoint={place}"), ("segtrain", f"resume={place}")):
        ended = typed(name, word)
        assert (ended.code, "Traceback" in ended.err) == (2, False), ended
        assert ended.err.startswith(f"{name}: {place}/checkpoints/step_00000002"), ended
        assert WRONG[change] in ended.err, ended
    assert (place / "metrics.jsonl").read_bytes() == before
    assert not list(place.glob("eval/*"))


def of_another_optimizer(state: Payload) -> Payload:
    return {"state": {}, "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": [0]}]}


def of_another_network(state: Payload) -> Payload:
    states = {number: dict(each) for number, each in state["state"].items()}
    states[0]["exp_avg"] = torch.zeros(3)
    return {**state, "state": states}


@pytest.mark.slow
@pytest.mark.row("R31")
@pytest.mark.parametrize("change", [of_another_optimizer, of_another_network])
def test_the_state_of_another_optimizer_is_refused(
    run: Path, tmp_path: Path, change: Callable[[Payload], Payload]
) -> None:
    ended = typed("segtrain", f"resume={changed(run, tmp_path / 'run', 'optimizer', change)}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert "optimizer.pt is the state of another" in ended.err


@pytest.mark.slow
@pytest.mark.row("R31")
@pytest.mark.parametrize("where", ["float64", "saved on a GPU"])
def test_the_same_weights_in_another_form_give_the_same_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def in_another_form(state: Payload) -> Payload:
        wide = where == "float64"
        return {k: v.double() if wide and v.is_floating_point() else v for k, v in state.items()}

    with monkeypatch.context() as patch:
        if where != "float64":
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        place = changed(run, tmp_path / "run", "model", in_another_form)
    for folder in (run, place):
        words = [f"checkpoint={folder}", f"eval.output={folder.parent / 'out'}", "eval.worst=0"]
        done("segeval", *words, "eval.weights=latest")
    out = [folder.parent / "out" / "metrics.json" for folder in (run, place)]
    numbers = [json.loads(path.read_text()) for path in out]
    assert {k: v for k, v in numbers[0].items() if k != "protocol"} == {
        k: v for k, v in numbers[1].items() if k != "protocol"
    }
