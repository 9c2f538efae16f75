"""A small file that stands for a huge one is refused before it is expanded, and so is a number
that nobody means.

Members of the latter: every kind of range of the schema and of our parts' arguments; too small, too
large, not finite; in a list, in a mapping.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segtrain.config import bounds, parts
from segtrain.config.compose import compose_config
from segtrain.config.files import load_yaml, masked_container
from segtrain.config.schema import CONF_DIR, typed
from segtrain.errors import UserError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "holds more than 100,000 values"),
        (f"{LAUGHS}\nb: {{<<: *a11}}\n", "holds more than 100,000 values"),
        ("[" * 5000, "(nested too deeply|exceeded maximum nesting depth)"),  # newer libyaml's own
        ("a: " + "{b: " * 80 + "1" + "}" * 80, "nested too deeply"),
        ("a: &a [*a]\n", "the alias \\*a stands for nothing whole"),
        ("x" * (300 << 10), "larger than 256 KiB"),
        ("a: '" + "${" * 500 + "}" * 500 + "'", "a text of more than 100 interpolations"),
    ],
)
def test_a_bomb_is_named_and_not_lit(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file}: .*{said}"):
        load_yaml(file)


def test_aliases_of_a_person_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: &a {x: 1}\nb: [*a, *a]\n")
    assert load_yaml(file) == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"no text in UTF-8 \(byte 3\)"):
        load_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({f"k{n}": f"${{k{n + 1}}}" * 2 for n in range(50)} | {"k50": "x"}, "1,000,000 characters"),
        (
            {f"k{n}": {"a": f"${{k{n + 1}}}", "b": f"${{k{n + 1}}}"} for n in range(50)}
            | {"k50": "x"},
            "1,000,000 characters",
        ),
        (
            {f"k{n}": f"${{.k{n + 1}}}" * 2 for n in range(50)} | {"k50": "x"},
            "1,000,000 characters",
        ),
        ({"a": "${${b}}", "b": "a"}, "a makes a key out of an interpolation"),
        ({"a": "${" * 500 + "}" * 500}, "a text of more than 100 interpolations"),
        ({f"k{n}": f"${{k{n + 1}}}" for n in range(3000)}, "too deeply"),
    ],
)
def test_interpolations_that_double_are_refused(plain: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        bounds.refuse_endless_references(plain, "config")


@pytest.mark.parametrize(
    "plain",
    [
        {"a": "${b}", "b": "${a}"},  # a circle: whoever resolves it says so
        {"a": {"b": "${..c}"}, "c": "x" * 1000},
        {"a": "${oc.env:HOME,${b}}/${oc.decode:${b}}", "b": "1"},
        {"a": "${now:%Y-%m-%d_%H-%M-%S}"},
    ],
)
def test_interpolations_of_a_person_are_read(plain: dict) -> None:
    bounds.refuse_endless_references(plain, "config")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The settings of a run, with every part of the defaults."""
    return masked_container(compose_config(["model=mask_rcnn", "dataset=coco_instance"])[0])


ABSURD = [
    ("train.steps", 0, "must be at least 1"),
    ("train.batch_size", 10**8, "must be at most 65,536"),
    ("train.accumulate", 0, "must be at least 1"),
    ("train.seed", -1, "must be at least 0"),
    ("train.processes", 5000, "must be at most 1,024"),
    ("train.threads", 10**6, "must be at most 1,024"),
    ("train.workers", 2000, "must be at most 256"),
    ("train.workers", -1, "must be at least 0"),
    ("train.keep", 0, "must be at least 1"),
    ("train.keep_best", 0, "must be at least 1"),
    ("train.patience", 10**9, "must be at most 1,000,000"),
    ("train.eval_every", -5, "must be at least 1"),
    ("train.clip", float("nan"), "a norm is above 0"),
    ("train.clip", float("inf"), "a norm is above 0"),
    ("train.ema", float("nan"), "lies between 0 and 1"),
    ("eval.worst", -1, "must be at least 0"),
    ("eval.processes", 0, "must be at least 1"),
    ("eval.scales", [0.5, 1000.0], "must be at most 100"),
    ("eval.scales", [0.0], "must be at least 0.01"),
    ("log.images", -1, "must be at least 0"),
    ("log.every", 0, "must be at least 1"),
    ("dataset.crop", [0, 64], "must be at least 1"),
    ("dataset.crop", [64, 10**6], "must be at most 32,768"),
    ("dataset.batch_size", -2, "must be at least 1"),
    ("loss.weights.mask", -1.0, "must be at least 0"),
    ("loss.weights.mask", float("inf"), "must be at most 1,000,000"),
    ("loss.weights.mask", float("nan"), "must be a number"),
    ("augment.flip", 1.5, "must be at most 1"),
    ("inference.score", -0.5, "must be at least 0"),
    ("inference.detections", 0, "must be at least 1"),
    ("model.proposals", [1000, 10**9], "must be at most 1,000,000"),
    ("optimizer.weight_decay", -1.0, "must be at least 0"),
    ("schedule.warmup", -1, "must be at least 0"),
]


@pytest.mark.row("R26")
@pytest.mark.parametrize(("key", "value", "said"), ABSURD)
def test_a_number_that_nobody_means_is_refused_by_its_range(
    plain: dict[str, Any], key: str, value: Any, said: str
) -> None:
    asked = copy.deepcopy(plain)
    node = asked
    *groups, name = key.split(".")
    for group in groups:
        node = node[group]
    node[name] = value
    with pytest.raises(UserError) as caught:
        parts.check(typed(asked))
    assert str(caught.value).startswith(f"{key}="), str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_defaults_of_every_part_lie_in_their_ranges(plain: dict[str, Any]) -> None:
    parts.check(typed(plain))
    for file in sorted(CONF_DIR.glob("*/*.yaml")):
        if file.parent.name in parts.GIVEN:
            node = OmegaConf.load(file)
            node.pop("defaults", None)
            bounds.check_arguments(file.parent.name, OmegaConf.to_container(node))


def test_the_arguments_of_another_package_are_its_own() -> None:
    bounds.check_arguments("loss", {"_target_": "mylab.Loss", "weights": {"seg": -1.0}})
    nested = {"_target_": "segtrain.losses.Combined", "parts": {"a": {"weights": {"seg": -1.0}}}}
    with pytest.raises(UserError, match=r"loss\.parts\.a\.weights\.seg=-1\.0: must be at least 0"):
        bounds.check_arguments("loss", nested)
