"""Schedules at steps whose factor can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from segtrain.config import instantiate
from segtrain.errors import UserError
from segtrain.optim.schedules import Constant, Cosine, Poly, Step

CONF = Path(__file__).resolve().parents[2] / "conf" / "schedule"


def test_poly_falls_to_zero_along_the_power() -> None:
    assert [Poly(4, power=2)(step) for step in range(5)] == [1, 0.5625, 0.25, 0.0625, 0]


def test_poly_holds_a_factor_for_as_many_updates_as_it_is_told() -> None:
    held = [Poly(8, power=1, hold=3)(step) for step in range(10)]
    assert held == [1, 1, 1, 0.625, 0.625, 0.625, 0.25, 0.25, 0.25, 0]
    # kazuto1011's main.py: after update 10 of 100,000 the rate is that of 10, and stays so to 19
    ten = Poly(100_000, hold=10)
    assert {ten(step) for step in range(10, 20)} == {Poly(100_000)(10)}


def test_poly_with_power_0_9_halfway_is_0_536() -> None:
    assert Poly(30000)(15000) == pytest.approx(0.53588673126, abs=1e-11)


def test_poly_changes_at_every_iteration() -> None:
    factors = [Poly(1000)(step) for step in range(1000)]
    assert all(before > after > 0 for before, after in pairwise(factors))


def test_poly_and_cosine_can_end_above_zero() -> None:
    assert [Poly(4, power=1, end=0.2)(step) for step in (0, 2, 4)] == pytest.approx([1, 0.6, 0.2])
    assert [Cosine(4, end=0.2)(step) for step in (0, 2, 4)] == pytest.approx([1, 0.6, 0.2])


def test_step_drops_exactly_at_60000_and_80000_of_90000() -> None:
    schedule = Step(90000, [0.66666667, 0.88888889], gamma=0.1)
    steps = (0, 59999, 60000, 79999, 80000, 89999)
    assert [schedule(step) for step in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_milestones_do_not_depend_on_their_order() -> None:
    assert [Step(10, [0.8, 0.5], gamma=0.5)(step) for step in (4, 5, 8)] == [1, 0.5, 0.25]


def test_cosine_is_half_a_wave() -> None:
    assert [Cosine(4)(step) for step in range(5)] == pytest.approx(
        [1, 0.8535533906, 0.5, 0.1464466094, 0]
    )


def test_constant_is_one() -> None:
    assert {Constant(5)(step) for step in range(9)} == {1.0}


def test_warm_up_is_linear_from_one_third_over_500_updates() -> None:
    schedule = Constant(1000, warmup=500, warmup_factor=1 / 3)
    assert [schedule(step) for step in (0, 250, 499, 500, 999)] == pytest.approx(
        [1 / 3, 2 / 3, 1 - 2 / 1500, 1, 1]
    )


def test_warm_up_multiplies_the_curve() -> None:
    options = {"warmup": 4, "warmup_factor": 0.0}
    assert Poly(8, power=1, **options)(2) == 0.5 * 0.75
    assert Cosine(4, **options)(2) == pytest.approx(0.5 * 0.5)
    assert Step(8, [0.125], gamma=0.1, **options)(2) == pytest.approx(0.5 * 0.1)


def test_after_the_last_step_the_factor_stays() -> None:
    assert Poly(4)(9) == 0
    assert Cosine(4, end=0.25)(9) == 0.25
    assert Step(4, [0.5], gamma=0.1)(9) == 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Poly(0), "schedule.steps=0"),
        (lambda: Poly(9, power=0), "schedule.power=0"),
        (lambda: Poly(9, end=2), "schedule.end=2"),
        (lambda: Poly(9, hold=0), "schedule.hold=0"),
        (lambda: Cosine(9, end=-1), "schedule.end=-1"),
        (lambda: Step(9, [0.5, 60000]), "schedule.milestones=[0.5, 60000]"),
        (lambda: Step(9, [0.5], gamma=10), "schedule.gamma=10"),
        (lambda: Constant(9, warmup=-1), "schedule.warmup=-1"),
        (lambda: Constant(9, warmup_factor=1.5), "schedule.warmup_factor=1.5"),
    ],
)
def test_a_number_that_cannot_work_is_named(make: Callable, said: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "halfway"),
    [("poly", 0.53588673126), ("step", 1.0), ("cosine", 0.5), ("constant", 1.0)],
)
def test_the_yaml_files_build_schedules_without_warm_up(name: str, halfway: float) -> None:
    schedule = instantiate.build(
        yaml.safe_load((CONF / f"{name}.yaml").read_text()), "schedule", steps=100
    )
    assert schedule(0) == 1
    assert schedule(50) == pytest.approx(halfway)
