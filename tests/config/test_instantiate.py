"""Nodes are checked from source alone, and what is built is what the node says.

Mostly on a small package made here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import instantiate, sources
from segtrain.config.files import load_yaml
from segtrain.config.parts import GIVEN
from segtrain.config.schema import CONF_DIR, DATASET_RUN_KEYS
from segtrain.errors import DataError, UserError

COMMON = """
from typing import Literal
Mode = Literal["whole", "slide"]
"""
NETS = """
from __future__ import annotations
from dataclasses import dataclass
from os import system
from typing import Any, Literal
import os
from small.errors import Broken
from small.models.common import Mode as HowTo
Name = Literal["resnet18", "resnet101"]

class Net:
    def __init__(
        self, num_classes: int, backbone: Name = "resnet18", rates: tuple[int, ...] = (6, 12),
        crop: tuple[int, int] = (8, 8),
        widths: list[int] | None = None, lr: float = 0.1, aux: bool = False,
        weights: dict[str, float] | None = None, mode: HowTo = "whole", extra: Any = None,
        part: Part | None = None, parts: list[Part] | None = None, bare=None,
        *, stride: Literal[8, 16] = 16,
    ) -> None:
        self.__dict__.update(locals())

@dataclass(frozen=True)
class Part:
    size: int
    name: str = "part"

@dataclass(frozen=True)
class Bigger(Part):
    depth: float = 1.0

class Heir(Net):
    pass

class NoKeywordSelf:
    def __init__(self, /, width: int = 3) -> None:
        self.width = width

class NoKeywordSize:
    def __init__(self, size: int = 1, /, width: int = 3) -> None:
        self.width = width

class Raises:
    def __init__(self, kind: str) -> None:
        errors = {
            "value": ValueError("too\\nsmall"),
            "index": IndexError("no stage"),
            "data": Broken("mask.png: torn"),
        }
        raise errors[kind]

class Replaced:
    pass

Replaced = os.getcwd

class _Private:
    pass

def helper(size: int) -> int:
    return size
"""
OPTIM = """
from __future__ import annotations

def sgd(model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> tuple:
    return model, lr, betas
"""
ERRORS = "from segtrain.errors import DataError as Broken\n"
NET = "small.models.nets.Net"


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `small` in place of segtrain, except in tests marked by their name as being about
    the real one.
    """
    if request.node.name.startswith("test_real"):
        return
    files = {
        "models/common.py": COMMON,
        "models/nets.py": NETS,
        "optim.py": OPTIM,
        "errors.py": ERRORS,
        "cli.py": NETS,
    }
    for name, text in {**files, "__init__.py": "", "models/__init__.py": ""}.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "small")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "small"]:
        monkeypatch.delitem(sys.modules, name)


def refusal(node: Any, given: tuple[str, ...] = ("num_classes",), path: str = "model") -> str:
    """The one line with which `check` refuses a node."""
    with pytest.raises(UserError) as caught:
        instantiate.check(node, path, given=given)
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def net(**arguments: Any) -> dict[str, Any]:
    return {"_target_": NET, **arguments}


def test_a_misspelled_argument_is_named_with_its_nearest_neighbour() -> None:
    assert (
        refusal(net(backbnoe="resnet18"))
        == "model.backbnoe: Net has no such argument. Did you mean `backbone`?"
    )


def test_a_misspelled_value_of_a_literal_alias_is_named_with_its_nearest_neighbour() -> None:
    wanted = (
        "model.backbone: expected resnet18 or resnet101, got 'resnet19'. Did you mean `resnet18`?"
    )
    assert refusal(net(backbone="resnet19")) == wanted


def test_an_alias_imported_from_another_of_our_modules_is_followed() -> None:
    assert (
        refusal(net(mode="slid"))
        == "model.mode: expected whole or slide, got 'slid'. Did you mean `slide`?"
    )


def test_misspelled_modules_and_classes_get_a_hint() -> None:
    assert refusal({"_target_": "small.models.nest.Net"}).endswith(
        "Did you mean `small.models.nets`?"
    )
    assert refusal({"_target_": "small.models.nets.Nett"}).endswith("Did you mean `Net`?")
    assert refusal({"_target_": "small.model.nets.Net"}).endswith("Did you mean `models`?")


def test_a_required_argument_comes_from_the_node_or_from_code_but_not_from_both() -> None:
    instantiate.check(net(num_classes=21), "model")
    instantiate.check(net(), "model", given=("num_classes",))
    assert refusal(net(), given=()) == "model.num_classes: Net needs a value here"
    assert (
        refusal(net(num_classes=21))
        == "model.num_classes: segtrain sets this itself; remove it from the config"
    )


def test_a_target_that_lacks_what_code_gives_cannot_stand_there() -> None:
    assert (
        refusal(net(), given=("steps",), path="schedule")
        == "schedule: Net cannot stand here, it takes no `steps`"
    )


@pytest.mark.parametrize(
    ("argument", "good", "bad"),
    [
        ("num_classes", [21, -1], [21.0, "21", True, None, [21]]),
        ("lr", [0.1, 1], ["0.1", True, None]),
        ("aux", [True, False], [1, 0, "true", None]),
        ("backbone", ["resnet18"], [18, None, ["resnet18"]]),
        ("stride", [8, 16], [32, 8.0, "8", True]),
        ("widths", [None, [], [1, 2]], [1, [1.5], [[1]], {"a": 1}, "12"]),
        ("rates", [[], [1, 2, 3]], [1, [1, "2"], None]),
        ("crop", [[1, 2]], [[1], [1, 2, 3], [1, 2.5], [], 12]),
        (
            "weights",
            [None, {}, {"seg": 1, "aux": 0.4}],
            [{"seg": "1"}, {1: 1.0}, [1.0], {"_args_": 1.0}],
        ),
        (
            "extra",
            [None, 1, "x", [{"a": [1.5]}]],
            [object(), (1, 2), {"a": {"_partial_": True}}, [{1, 2}]],
        ),
        ("part", [None], [1, "small.models.nets.Part", [], {"size": 1}]),
        ("bare", [], [None, 1, "x"]),
    ],
)
def test_values_fit_their_annotations_or_are_refused(argument: str, good: list, bad: list) -> None:
    given = () if argument == "num_classes" else ("num_classes",)
    for value in good:
        instantiate.check(net(**{argument: value}), "model", given=given)
    for value in bad:
        assert refusal(net(**{argument: value}), given).startswith(f"model.{argument}")


def test_the_place_of_a_wrong_element_is_named() -> None:
    assert refusal(net(rates=[6, "x"])) == "model.rates[1]: expected int, got 'x'."
    assert (
        refusal(net(extra=[{"a": {1, 2}}])) == "model.extra[0].a: expected plain data, got {1, 2}."
    )
    assert refusal(net(widths=["x"])) == "model.widths: expected list[int] or null, got ['x']."
    one = "model.widths: expected list[int] or null, got 8. A list of one is written [8]."
    assert refusal(net(widths=8)) == one


def test_nodes_inside_a_node_are_checked_wherever_they_may_stand() -> None:
    bad = {"_target_": "small.models.nets.Part", "size": "big"}
    wanted = "expected int, got 'big'."
    assert refusal(net(part=bad)) == f"model.part.size: {wanted}"
    assert refusal(net(parts=[bad])) == f"model.parts[0].size: {wanted}"
    assert refusal(net(extra={"a": [bad]})) == f"model.extra.a[0].size: {wanted}"
    assert refusal(net(backbone=bad)).startswith("model.backbone: expected resnet18 or resnet101")


def test_skipped_keys_are_not_arguments() -> None:
    node = net(crop=["not", "checked"], steps=300)
    instantiate.check(node, "dataset", skip=("crop", "steps"), given=("num_classes",))
    assert instantiate.build(node, "dataset", skip=("crop", "steps"), num_classes=2).crop == (8, 8)


def test_building_passes_values_and_given_arguments_and_makes_tuples_and_parts() -> None:
    part = {"_target_": "small.models.nets.Bigger", "size": 3, "depth": 2}
    made = instantiate.build(
        net(crop=[4, 5], rates=[1], widths=[7], part=part, parts=[part], extra={"a": part}),
        num_classes=9,
    )
    assert (made.num_classes, made.crop, made.rates, made.widths) == (9, (4, 5), (1,), [7])
    assert [(p.size, p.name, p.depth) for p in (made.part, made.parts[0], made.extra["a"])] == [
        (3, "part", 2)
    ] * 3
    assert type(made).__module__ == "small.models.nets"


def test_functions_build_in_optim_and_nowhere_else() -> None:
    model = object()
    node = {"_target_": "small.optim.sgd", "lr": 0.5, "betas": [0.8, 0.9]}
    assert instantiate.build(node, "optimizer", model=model) == (model, 0.5, (0.8, 0.9))
    assert "defines no class helper" in refusal(
        {"_target_": "small.models.nets.helper", "size": 1}, ()
    )


def test_dataclass_fields_and_inherited_constructors_are_arguments() -> None:
    assert refusal({"_target_": "small.models.nets.Bigger", "dept": 1}, ()).endswith(
        "Did you mean `depth`?"
    )
    assert (
        refusal({"_target_": "small.models.nets.Bigger"}, ())
        == "model.size: Bigger needs a value here"
    )
    assert instantiate.build({"_target_": "small.models.nets.Heir", "lr": 2}, num_classes=1).lr == 2


@pytest.mark.parametrize("name", ["NoKeywordSelf", "NoKeywordSize"])
def test_arguments_behind_positional_only_ones_are_arguments(name: str) -> None:
    node = {"_target_": f"small.models.nets.{name}"}
    assert instantiate.build({**node, "width": 5}).width == 5
    assert instantiate.build(node).width == 3
    assert refusal({**node, "widht": 5}, ()).endswith("Did you mean `width`?")


@pytest.mark.parametrize(
    "name", ["system", "os", "Name", "Any", "_Private", "dataclass", "Missing", "HowTo"]
)
def test_names_that_the_module_does_not_define_as_public_classes_are_refused(name: str) -> None:
    assert f"{name}" in refusal({"_target_": f"small.models.nets.{name}"}, ())


def test_modules_outside_the_parts_are_refused_although_they_exist() -> None:
    assert "parts are in data, datasets, backbones" in refusal({"_target_": "small.cli.Net"})


def test_a_class_that_its_module_replaces_by_something_else_is_not_called() -> None:
    with pytest.raises(UserError, match="Replaced is not what its source file defines"):
        instantiate.build({"_target_": "small.models.nets.Replaced"}, "model")


def test_what_a_constructor_rejects_becomes_one_line_and_our_own_errors_pass() -> None:
    node = {"_target_": "small.models.nets.Raises"}
    with pytest.raises(UserError) as caught:
        instantiate.build({**node, "kind": "value"}, "model")
    assert str(caught.value) == "model: Raises refuses these values: too small"
    with pytest.raises(UserError, match="refuses these values: no stage"):
        instantiate.build({**node, "kind": "index"})
    with pytest.raises(DataError, match=r"^mask\.png: torn$"):
        instantiate.build({**node, "kind": "data"}, "model")


def test_odd_nodes_and_keys_are_refused_in_one_line() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert "nested too deeply" in refusal(net(extra=deep))
    assert "got a int" in refusal(net(backbone=16**5000))
    for node in (None, [], "x", {}, {"target": NET}, 16**5000):
        assert "expected a mapping with a `_target_`" in refusal(node)
    for key in (
        1,
        None,
        "a\nb",
        "_args_",
        "_partial_",
        "_recursive_",
        "_convert_",
        "__init__",
        "self",
        16**5000,
    ):
        assert "has no such argument" in refusal({"_target_": NET, key: 1})


def part_files() -> list[Path]:
    return [path for part in GIVEN for path in sorted((CONF_DIR / part).glob("*.yaml"))]


def composed(path: Path) -> dict[str, Any]:
    """A part's yaml over those beside it that its `defaults` name; interpolated values left out."""
    own = load_yaml(path)
    bases = [d for d in own.pop("defaults", []) if isinstance(d, str) and d != "_self_"]
    merged: dict[str, Any] = {}
    for node in [*(composed(path.parent / f"{base}.yaml") for base in bases), own]:
        merged |= node
    return merged


@pytest.mark.parametrize("path", part_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_real_configs_name_parts_that_exist_and_values_that_fit(path: Path) -> None:
    part = path.parent.name
    node = composed(path)
    late = [k for k, v in node.items() if isinstance(v, str) and v.startswith("${")]
    plain = {k: v for k, v in node.items() if k not in late}
    if part == "writer":
        (plain,) = plain.values()  # by its name, as there may be several
    skip = DATASET_RUN_KEYS if part == "dataset" else ()
    instantiate.check(plain, part, skip=skip, given=[*GIVEN[part], *late])


def test_real_checks_import_neither_torch_nor_the_part() -> None:
    code = (
        "import sys; from segtrain.config import instantiate\n"
        "target = 'segtrain.models.deeplabv3plus.DeepLabV3Plus'\n"
        "node = {'_target_': target, 'backbone': 'resnet18'}\n"
        "instantiate.check(node, 'model', given=('num_classes',))\n"
        "heavy = ('torch', 'numpy')\n"
        "print([m for m in sys.modules if m in heavy or m.startswith('segtrain.models')])"
    )
    root = Path(instantiate.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
