"""Numbers that are not finite: in the loss, the gradient, the input, the weights, the optimizer.

Members of the kind: NaN and inf in the loss of one micro-batch; NaN, inf and a finite gradient
whose square is not; an image that is infinite inside the network; ruined weights; an optimizer's
state that is inf; each in fp32, bf16 and fp16, ended and skipped, on one process and on either of
two (slow), with SGD and AdamW, with and without moving average and clipping. And NaN in the
monitored scalar.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from poison import KINDS, STEPS, Case, ended, images_of, installed
from rows import Tally, amount
from run_folders import assert_same_bits
from torch import nn

from segtrain.checkpoints import reading
from segtrain.checkpoints.manifest import Checkpoint
from segtrain.config.schema import TrainConf
from segtrain.engine import train as loop
from segtrain.engine.state import TrainState, _require_finite
from segtrain.engine.validate import patience_exhausted, remember_best
from segtrain.errors import InternalError
from segtrain.logs.metrics_file import SPIKES, read_lines_of
from segtrain.optim.optimizers import sgd
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World

POISON = Path(__file__).parents[1] / "poison.py"
GRADIENTS = ("gradient nan", "gradient inf", "gradient huge")


def state_of(network: nn.Module) -> TrainState:
    optimizer = sgd(network, lr=0.1)
    return TrainState(network, network, optimizer, Precision("fp32"), None)


def saved(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step."""
    return reading.find(folder / "checkpoints" / f"step_{step:08d}")


def same(folder: Path, before: int, after: int) -> None:
    """Assert that weights, buffers, momentum, counters and average did not change by a bit."""
    for name in ("model", "optimizer", "ema"):
        ends = [saved(folder, step).read(name) for step in (before, after)]
        for held in ends if name == "optimizer" else ():
            for group in held["param_groups"]:
                group.pop("lr")  # which goes on by step
        assert_same_bits(*ends)


def rates(folder: Path) -> dict[int, float]:
    """Return the learning rate of each step in metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["lr"] for line in lines if line["phase"] == "train"}


def wording(kind: str) -> str:
    """Return how a message begins that tells of this kind."""
    return "the gradient is not finite" if kind in GRADIENTS else "the loss is not finite"


def holds(case: Case, folder: Path, told: str, blamed: list[str]) -> None:
    """Assert what must hold of a case that went wrong in one update."""
    step = case.step
    log = (folder / "train.log").read_text()
    if case.precision == "fp16" and case.kind in GRADIENTS:  # an overflow, as any other
        assert told == "complete"
        now = saved(folder, step).read("precision")
        assert now["skipped"] == 1
        assert (
            now["scaler"]["scale"]
            == saved(folder, step - 1).read("precision")["scaler"]["scale"] / 2
        )
        return
    names = f"on images {', '.join(blamed)};"
    if case.mode == "raise":
        assert told.startswith(f"70 step {step}: {wording(case.kind)}"), told
        assert f"{names} it changed no weight. A lower" in told
        newest = reading.latest(folder / "checkpoints")
        assert newest is not None
        assert newest.step == step - 1
        return
    assert told == "complete"
    assert f"warn   step {step}: {wording(case.kind)}" in log
    assert f"{names} skipped, update 1 of this kind" in log
    (line,) = read_lines_of(folder / SPIKES)
    assert (line["step"], line["skipped"], line["images"]) == (step, True, blamed)
    same(folder, step - 1, step)
    assert saved(folder, STEPS).meta["skipped"] == [1, 0]
    after = [saved(folder, number).read("model")["head.weight"] for number in (step, step + 1)]
    assert not torch.equal(*after)
    for name, value in saved(folder, STEPS).read("model").items():
        assert torch.isfinite(value).all(), name


def cases(modes: tuple[str, ...], precisions: tuple[str, ...]) -> Iterator[Case]:
    """Every kind in these modes and precisions; optimizer and average take turns."""
    turns = itertools.cycle(["sgd", "adamw"])
    for mode, precision, kind in itertools.product(modes, precisions, KINDS):
        yield Case(kind, precision, mode, optimizer=next(turns))


QUICK = [
    Case("loss nan"),
    Case("gradient nan", "bf16"),
    Case("gradient huge", optimizer="adamw"),
    Case("input inf", mode="skip", optimizer="adamw"),
    Case("gradient nan", "fp16"),
]
FAST = [*cases(("raise", "skip"), ("fp32",)), *QUICK[1:2], *QUICK[4:], Case("input inf", "fp16")]
LONG = [
    *cases(("raise", "skip"), ("fp32", "bf16", "fp16")),
    *(
        replace(case, accumulate=accumulate, step=step)
        for accumulate, step in ((1, 2), (4, 5))
        for case in cases(("raise", "skip"), ("fp32",))
    ),
]


@pytest.mark.row("R16")
@pytest.mark.parametrize("case", amount(QUICK, FAST, LONG), ids=lambda case: case.name)
def test_a_number_that_is_not_finite_cancels_its_own_update_and_names_its_images(
    case: Case, tmp_path: Path
) -> None:
    with installed(case) as blamed:
        told = ended(case, tmp_path / "run", World())
    holds(case, tmp_path / "run", told, blamed)


@pytest.mark.row("R16")
@pytest.mark.slow
def test_whichever_rank_it_happens_on_all_ranks_act_alike_and_its_images_are_named(
    tmp_path: Path, tally: Tally
) -> None:
    kinds = ("loss nan", "gradient nan", "gradient huge", "input inf")
    fast = [
        Case("gradient nan", rank=1),
        Case("gradient huge", rank=0),
        Case("loss nan", mode="skip", rank=1),
        Case("input inf", mode="skip", rank=1),
    ]
    long = [
        Case(kind, precision, mode, rank=rank)
        for kind, precision, mode, rank in itertools.product(
            kinds, ("fp32", "bf16", "fp16"), ("raise", "skip"), (0, 1)
        )
    ]
    chosen = [replace(case, accumulate=1) for case in amount(fast, fast, long)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(POISON), str(tmp_path), *(case.name for case in chosen)],
            env=os.environ
            | group
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    for case in chosen:
        first, second = json.loads((tmp_path / case.name / "ended").read_text())
        assert first == second
        blamed = images_of(case.step, case.rank, 2, case.accumulate)[-1]
        holds(case, tmp_path / case.name, first, blamed)
    tally(len(chosen))


def test_the_learning_rate_goes_on_by_step_where_an_update_is_skipped(tmp_path: Path) -> None:
    for name, case in (("bad", Case("loss nan", mode="skip")), ("good", Case("none"))):
        with installed(case):
            assert ended(case, tmp_path / name, World()) == "complete"
    assert len(rates(tmp_path / "good")) == STEPS
    assert rates(tmp_path / "bad") == rates(tmp_path / "good")


def test_a_gradient_that_clipping_would_make_zero_is_named(tmp_path: Path) -> None:
    case = Case("gradient huge")
    with installed(case) as blamed:
        told = ended(case, tmp_path / "run", World(), clip=1.0)
    holds(case, tmp_path / "run", told, blamed)


def test_what_happens_once_only_is_not_put_down_to_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    update = loop.update
    flips = iter([False, True])

    def with_a_bit_flipped(run, parts, state, micro_batches, world, signals):
        if next(flips, False):
            hook = state.network.head.weight.register_hook(lambda gradient: gradient * math.nan)
            try:
                return update(run, parts, state, micro_batches, world, signals)
            finally:
                hook.remove()
        return update(run, parts, state, micro_batches, world, signals)

    monkeypatch.setattr(loop, "update", with_a_bit_flipped)
    with installed(Case("none")):
        told = ended(Case("none"), tmp_path / "run", World())
    images = ", ".join(itertools.chain(*images_of(2, 0, 1, 2)))
    assert told.startswith("70 step 2: the gradient is not finite (nan), though the loss is (")
    assert f" only once, not when computed again, on one of images {images}; " in told


def test_of_skipped_updates_there_may_be_a_thousandth_and_one_in_short_runs(tmp_path: Path) -> None:
    case = Case("gradient nan", mode="skip")  # of 20 steps; its image comes again after 8
    with installed(case):
        told = ended(case, tmp_path / "run", World(), steps=20)
    found = re.match(r"70 step (\d+): the gradient is not finite \(nan\)", told)
    assert found is not None, told
    assert 8 < int(found[1]) < 17
    assert "; 1 may be skipped in 20 steps, this is one more; it changed no weight. " in told


def test_ten_updates_in_a_row_may_be_skipped_and_a_resume_counts_on(tmp_path: Path) -> None:
    case = Case("loss nan", mode="skip", step=1, last=11)
    words = "70 step 11: the loss is not finite (nan) on images "
    for _ in range(2):
        with installed(case):
            told = ended(case, tmp_path / "run", World(), steps=20_000)
        assert told.startswith(words)
        assert "; 10 may be skipped in a row, this is one more; " in told
        newest = reading.latest(tmp_path / "run" / "checkpoints")
        assert newest is not None
        assert newest.step == 10
        assert newest.meta["skipped"] == [10, 10]


@pytest.mark.row("R16")
@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_images_are_not_blamed_for_weights_that_an_update_before_ruined(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop.update

    def ruined(run, parts, state, *others):
        if state.step == 1:
            with torch.no_grad():
                state.network.head.weight[0, 1] = math.inf
        return update(run, parts, state, *others)

    monkeypatch.setattr(loop, "update", ruined)
    case = Case("none", mode=mode)
    with installed(case):
        told = ended(case, tmp_path / "run", World())
    assert told.startswith("70 step 2: the loss is not finite (nan), and neither are the weights: ")
    assert "an update, most likely one before it, ruined them" in told
    assert not re.search(r"train\d", told)
    assert "changed no weight" not in told


@pytest.mark.row("R16")
def test_an_optimizer_whose_state_is_not_finite_is_not_saved() -> None:
    network = nn.Linear(2, 1)
    state = state_of(network)
    network(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    _require_finite(state, World())
    state.optimizer.state[network.weight]["momentum_buffer"][0, 1] = math.inf
    with pytest.raises(InternalError, match="step 0: the optimizer's state is not finite after"):
        _require_finite(state, World())
    with torch.no_grad():
        network.bias[0] = math.nan
    with pytest.raises(InternalError, match="step 0: weights are not finite after this update"):
        _require_finite(state, World())


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_first_number_becomes_the_best_after_a_validation_that_gave_nan(mode: str) -> None:
    train = TrainConf(monitor="mIoU", monitor_mode=mode, patience=2)
    state = state_of(nn.Linear(2, 1))
    best = []
    for step, value in [(10, math.nan), (20, 0.5), (30, math.nan), (40, 0.5)]:
        state.step = step
        state.metrics = {"mIoU": value}
        remember_best(train, state)
        assert state.best is not None
        best.append(state.best["step"])
    assert best == [10, 20, 20, 20]
    assert state.best == {"step": 20, "value": 0.5}
    assert patience_exhausted(train, state, 10)


def test_patience_ends_also_where_no_validation_ever_gives_a_number() -> None:
    train = TrainConf(monitor="mIoU", patience=2)
    state = state_of(nn.Linear(2, 1))
    ended = []
    for step in (10, 20, 30):
        state.step = step
        state.metrics = {"mIoU": math.nan}
        remember_best(train, state)
        ended.append(patience_exhausted(train, state, 10))
    assert ended == [False, False, True]
