"""The rate and the decay of every parameter of the recipes, beside those of the authors' files.

The tables stand in authors_<system>.py beside this file: `TABLES` is experiment -> table, see
published_rates.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from published_rates import Argued, Table, differences, rates, rates_of
from recipes import sampled
from torch import nn

from segtrain.config import recipes as recipe_table

FILES = sorted(path.stem for path in Path(__file__).parent.glob("authors_*.py"))
TABLES: dict[str, Table] = {
    experiment: table
    for file in FILES
    for experiment, table in importlib.import_module(file).TABLES.items()
}


@pytest.mark.parametrize("experiment", sampled(sorted(TABLES)))
def test_every_parameter_has_the_rate_and_the_decay_of_the_authors_files(experiment: str) -> None:
    assert differences(rates(experiment), TABLES[experiment]) == []


def test_every_published_recipe_has_a_table() -> None:
    assert sorted(TABLES) == recipe_table.names()


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2).requires_grad_(False))


def test_rates_are_those_of_the_optimizers_groups_and_0_where_frozen() -> None:
    assert rates_of(small(), lr=0.1, weight_decay=0.5, bias_factor=2.0) == {
        "0:Conv2d.weight": (1.0, 0.5),
        "0:Conv2d.bias": (2.0, 0.0),
        "1:BatchNorm2d.weight": (0.0, 0.0),
        "1:BatchNorm2d.bias": (0.0, 0.0),
    }


def test_a_wrong_factor_and_a_wrong_decay_and_rows_too_few_and_too_many_are_named() -> None:
    given = rates_of(small(), lr=0.1, weight_decay=0.5, bias_factor=2.0)
    right = {
        r".*:Conv2d\.weight": (1.0, 0.5),
        r".*:Conv2d\.bias": (2.0, 0.0),
        r".*:BatchNorm2d\..*": (0.0, 0.0),
    }
    assert differences(given, right) == []
    assert differences(given, right | {r".*:Conv2d\.bias": (1.0, 0.0)}) == [
        "0:Conv2d.bias: 2x, decay 0; theirs 1x, 0"
    ]
    assert differences(given, right | {r".*:Conv2d\.weight": (1.0, 0.25)}) == [
        "0:Conv2d.weight: 1x, decay 0.5; theirs 1x, 0.25"
    ]
    assert differences(given, right | {r"0:.*\.bias": (2.0, 0.0), "2:.*": (1.0, 0.0)}) == [
        r"0:Conv2d.bias: .*:Conv2d\.bias and 0:.*\.bias",
        "2:.*: matches no parameter",
    ]
    argued = {r".*:Conv2d\.bias": Argued((1.0, 0.5), ours=(2.0, 0.0))}
    assert differences(given, right | argued) == []
    argued = {r".*:Conv2d\.bias": Argued((2.0, 0.0), ours=(1.0, 0.5))}
    assert differences(given, right | argued) == ["0:Conv2d.bias: 2x, decay 0; argued 1x, 0.5"]
    without = {row: numbers for row, numbers in right.items() if "bias" not in row}
    assert differences(given, without) == ["0:Conv2d.bias: no row"]


def test_an_argued_row_differs_from_the_authors() -> None:
    argued = [row for table in TABLES.values() for row in table.values() if isinstance(row, Argued)]
    assert argued
    assert all(row.theirs != row.ours for row in argued)
