"""Autocast, loss scaling, and updates that a device flag cancels bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from segtrain.errors import InternalError, UserError
from segtrain.optim.optimizers import adamw, sgd
from segtrain.optim.precision import Precision

OPTIMISERS = [sgd, adamw]
NAMES = ["fp32", "bf16", "fp16"]


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)).to(device)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    seed: int,
    bad: float | None = 0,
) -> None:
    """One update on random images; a non-zero `bad` comes with a loss that is not finite."""
    device = next(model.parameters()).device
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).to(device)
    optimizer.zero_grad()
    with precision:
        output = model(images)
    precision.backward(output.float().square().mean() * (float("nan") if bad else 1.0))
    precision.unscale(optimizer)
    precision.step(optimizer, None if bad is None else torch.full((), bad, device=device))


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and all optimiser state: momentum, or both moments and the step counter."""
    found = dict(model.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": value for name, value in state.items()}
    return copy.deepcopy(found)


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", OPTIMISERS)
@pytest.mark.parametrize("flag", [1.0, 3.0, float("nan")])  # a sum over ranks counts the bad ones
def test_a_bad_update_changes_no_bit_of_weights_momentum_or_counters(
    make: Callable, name: str, flag: float
) -> None:
    model = network()
    optimizer = make(model, lr=0.1)
    precision = Precision(name)
    update(model, optimizer, precision, seed=1)
    before = bits(model, optimizer)
    update(model, optimizer, precision, seed=2, bad=flag)
    assert_same_bits(bits(model, optimizer), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_bad_first_update_leaves_no_trace_in_the_ones_that_follow(
    make: Callable, name: str
) -> None:
    results = []
    for flags in ([1.0, 0.0, 0.0], [0.0, 0.0]):
        model = network()
        optimizer = make(model, lr=0.1)
        precision = Precision(name)
        for seed, flag in zip(range(-len(flags), 0), flags, strict=True):
            update(model, optimizer, precision, seed=seed + 100, bad=flag)
        results.append(bits(model, optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_good_flag_gives_the_same_bits_as_no_flag(make: Callable, name: str) -> None:
    results = []
    for flag in (0.0, None):
        model = network()
        optimizer = make(model, lr=0.1)
        precision = Precision(name)
        start = bits(model, optimizer)
        update(model, optimizer, precision, seed=1, bad=flag)
        assert not torch.equal(model.state_dict()["0.weight"], start["0.weight"])
        results.append(bits(model, optimizer))
    assert_same_bits(*results)


def test_a_flag_cancels_an_fp16_update_whose_own_gradients_are_finite() -> None:
    model = network()
    optimizer = sgd(model, lr=0.1)
    precision = Precision("fp16")
    before = bits(model, optimizer)
    with precision:
        output = model(torch.ones(1, 3, 6, 6))
    precision.backward(output.float().mean())
    precision.step(optimizer, torch.ones(()))  # another rank's loss
    assert_same_bits(bits(model, optimizer), before)


def test_the_flag_is_gone_from_the_optimizer_after_the_step() -> None:
    model = network()
    optimizer = sgd(model, lr=0.1)
    update(model, optimizer, Precision("fp32"), seed=1, bad=1.0)
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")


def test_an_optimizer_that_cannot_cancel_is_refused() -> None:
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, fused=False)
    with pytest.raises(UserError, match="fused=True"):
        update(model, plain, Precision("fp32"), seed=1)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_context_computes_in_its_precision_and_ends_with_an_error_too(
    name: str, dtype: torch.dtype
) -> None:
    precision = Precision(name)
    layer = nn.Linear(2, 2)
    data = torch.ones(1, 2)
    with precision:
        assert layer(data).dtype is dtype
        with precision:
            pass
        assert layer(data).dtype is dtype
    with pytest.raises(ZeroDivisionError), precision:
        1 / 0  # noqa: B018
    assert layer(data).dtype is torch.float32


def test_fp16_scales_the_loss_by_65536_and_unscale_brings_the_true_gradient_back() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = sgd(nn.ParameterList([weight]), lr=0.1)
    precision = Precision("fp16")
    precision.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3 * 65536
    precision.unscale(optimizer)
    assert weight.grad.item() == 3


def overflow(weight: nn.Parameter, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
    optimizer.zero_grad()
    precision.backward((weight * 1e38).sum())
    precision.unscale(optimizer)
    precision.step(optimizer, torch.zeros(()))


def test_an_fp16_overflow_is_skipped_counted_and_halves_the_scale() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = sgd(nn.ParameterList([weight]), lr=0.1)
    precision = Precision("fp16")
    overflow(weight, optimizer, precision)
    assert weight.item() == 2
    assert precision.skipped() == 1
    assert precision.state_dict()["scaler"]["scale"] == 32768
    precision.check()


def test_fp16_stops_with_one_line_when_17_overflows_took_the_scale_below_1() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = sgd(nn.ParameterList([weight]), lr=0.1)
    precision = Precision("fp16")
    for _ in range(17):  # 2 ** 16 / 2 ** 17
        precision.check()
        optimizer.zero_grad()
        precision.backward((weight * float("inf")).sum())
        precision.step(optimizer)
    with pytest.raises(
        InternalError, match=r"fell to 0\.5 after 17 skipped updates.*train\.precision=bf16"
    ):
        precision.check()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_plain_and_survives_a_checkpoint(name: str) -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = sgd(nn.ParameterList([weight]), lr=0.1)
    precision = Precision(name)
    overflow(weight, optimizer, precision)
    file = io.BytesIO()
    torch.save(precision.state_dict(), file)
    file.seek(0)
    again = Precision(name)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.state_dict() == precision.state_dict()


def test_a_resumed_fp16_run_ends_in_the_bits_of_the_unbroken_one() -> None:
    def run(broken: bool) -> dict[str, Tensor]:
        model = network()
        optimizer = sgd(model, lr=0.1)
        precision = Precision("fp16")
        for step in range(4):
            if broken and step == 2:
                saved = precision.state_dict()
                precision = Precision("fp16")
                precision.load_state_dict(saved)
            update(model, optimizer, precision, seed=step, bad=float(step == 1))
        assert precision.state_dict()["scaler"]["scale"] == 32768
        return bits(model, optimizer)

    assert_same_bits(run(broken=True), run(broken=False))


def test_a_state_of_another_precision_is_refused() -> None:
    with pytest.raises(UserError, match=r"trained with train.precision=fp16, not fp32"):
        Precision("fp32").load_state_dict(Precision("fp16").state_dict())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"train.precision=half is unknown"):
        Precision("half")  # ty: ignore[invalid-argument-type]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", OPTIMISERS)
def test_on_a_gpu_a_bad_update_is_cancelled_without_waiting_for_the_device(
    make: Callable, name: str
) -> None:
    model = network("cuda")
    optimizer = make(model, lr=0.1)
    precision = Precision(name, "cuda")
    update(model, optimizer, precision, seed=1)
    before = bits(model, optimizer)
    loss = model(torch.ones(1, 3, 6, 6, device="cuda")).mean() * float("nan")
    flag = torch.full((), 2.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        precision.backward(loss)
        precision.unscale(optimizer)
        precision.step(optimizer, flag)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(bits(model, optimizer), before)
