"""A small file that stands for a huge one is refused before it is expanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.config import bounds
from segtrain.config.files import load_yaml
from segtrain.errors import UserError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "holds more than 100,000 values"),
        (f"{LAUGHS}\nb: {{<<: *a11}}\n", "holds more than 100,000 values"),
        ("[" * 5000, "nested too deeply"),
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
