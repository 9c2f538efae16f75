"""A search space is written as in Hydra's Optuna sweeper, and read by what its setting takes."""

from __future__ import annotations

from typing import Any

import pytest

from segtrain.config import settings
from segtrain.config.space import Numbers, Texts, parameter
from segtrain.errors import UserError

LR = "optimizer.lr"


def read(word: str, hint: Any = float, names: list[str] | None = None) -> object:
    return parameter(settings.read(word), names or [], hint)


@pytest.mark.parametrize(
    ("text", "hint", "found"),
    [
        ("interval(1e-4,1e-1)", float, Numbers(1e-4, 1e-1)),
        ("interval(0,1)", float, Numbers(0.0, 1.0)),  # as in Hydra: any number between them
        ("interval(1,5)", int, Numbers(1, 5, 1, whole=True)),
        ("interval(1,5)", int | None, Numbers(1, 5, 1, whole=True)),
        ("int(interval(1,5))", Any, Numbers(1, 5, 1, whole=True)),
        ("tag(log, interval(1e-4, 1e-1))", float, Numbers(1e-4, 1e-1, log=True)),
        ("tag(log,int(interval(1,64)))", int, Numbers(1, 64, None, log=True, whole=True)),
        ("range(4,17,4)", int, Numbers(4, 16, 4, whole=True)),
        ("range(3)", int, Numbers(0, 2, 1, whole=True)),
        ("range(5,1,-2)", int, Numbers(3, 5, 2, whole=True)),
        ("range(0.1,0.5,0.1)", float, Numbers(0.1, 0.4, 0.1)),
        ("choice(a,b,c)", str, Texts(["a", "b", "c"])),
        ("a,b", str, Texts(["a", "b"])),
        ("[1,2],[3]", list, Texts(["[1,2]", "[3]"])),
        ("glob(u*)", str, Texts(["unet", "unet_32"])),
        ("0.1", float, None),
        ("choice(a)", str, None),
        ("f(x)", str, None),  # text that happens to look like a call
    ],
)
def test_what_is_typed_is_what_is_searched(text: str, hint: Any, found: object) -> None:
    assert read(f"{LR}={text}", hint, ["fcn", "unet", "unet_32"]) == found


def test_numbers_are_drawn_with_as_many_digits_as_stand_in_a_name() -> None:
    assert Numbers(1e-4, 1e-1).text(0.018896829416875045) == "0.0188968"
    assert Numbers(1e-6, 1e-1).text(1.0131631357916146e-06) == "1.01316e-06"
    assert Numbers(0.1, 0.4, 0.1).text(0.30000000000000004) == "0.3"
    assert Numbers(1, 5, 1, whole=True).text(3.0) == "3"
    assert Numbers(1.23456789, 2.0).ends == ["1.23456789", "2.0"]  # as they were typed


@pytest.mark.parametrize(
    ("text", "hint", "said"),
    [
        ("interval(1,1)", float, "begins below its end"),
        ("interval(2,1)", float, "begins below its end"),
        ("interval(0,inf)", float, "ends at numbers"),
        ("interval(nan,1)", float, "ends at numbers"),
        ("interval(0.5,4)", int, "optimizer.lr takes whole numbers"),
        ("tag(log,interval(0,1))", float, "needs ends above 0"),
        ("tag(exp,interval(1,2))", float, "the tag `exp` says nothing here"),
        ("tag(log,range(1,8))", int, "a range has a step"),
        ("range(3,4)", int, "is one value, 3; write that"),
        ("range(4,3)", int, "a value between its commas is missing"),
        ("range(0,1000000000)", int, "more than 1,000 runs"),
        ("0.1,,0.2", float, "a value between its commas is missing"),
        ("0.1,0.1", float, "0.1 stands there twice"),
        ("glob(z*)", str, "fits none of"),
    ],
)
def test_a_mistake_in_a_space_is_one_line(text: str, hint: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(f"{LR}={text}", hint, ["unet"])
    assert str(error.value).startswith(f"{LR}={text}: ")
