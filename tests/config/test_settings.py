"""Text is what was typed; all else is Hydra's grammar; what is wrong is named by its word."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from segtrain.config import settings
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.files import load_run, masked_container, stored_text
from segtrain.errors import UserError

HOME = str(Path.home())

# What follows `dataset.root=` -> the folder that is meant.
TEXTS = {
    "2026_11_29": "2026_11_29",
    "2026-11-29": "2026-11-29",
    "007": "007",
    "1e3": "1e3",
    "0x10": "0x10",
    "true": "true",
    "null": "null",
    "a b": "a b",
    " a": " a",
    "a,b": "a,b",
    "a=b": "a=b",
    "a#b": "a#b",
    "a:b": "a:b",
    "[a]": "[a]",
    "{a}": "{a}",
    "(a": "(a",
    "a'b": "a'b",
    'a"b': 'a"b',
    "$UNSET": "$UNSET",
    "a\\b": "a\\b",
    "München/straße": "München/straße",
    "日本": "日本",
    "'a b'": "a b",
    '"a b"': "a b",
    '"a\\"b"': 'a"b',
    "'a','b'": "'a','b'",
    '"null"': "null",
    "~/x": f"{HOME}/x",
    '"~/x"': f"{HOME}/x",
    "~nobody_of_this_name/x": "~nobody_of_this_name/x",
    "x~": "x~",
    "../x": "../x",
}


@pytest.mark.parametrize("typed", TEXTS)
def test_a_text_is_what_was_typed(typed: str) -> None:
    setting = settings.read(f"dataset.root={typed}")
    assert settings.value(setting, str) == TEXTS[typed]


@pytest.mark.parametrize(
    ("typed", "hint", "value"),
    [
        ("null", str | None, None),
        ("'null'", str | None, "null"),
        ("None", str | None, "None"),
        ("resnet18", Literal["resnet18", "resnet34"], "resnet18"),
        ("null", Literal["imagenet"] | None, None),
        ("[a,b]", str | list[str], ["a", "b"]),
        ("'[a,b]'", str | list[str], "[a,b]"),
        ("[a", str | list[str], "[a"),
        ("[007,a b,straße]", list[str], ["007", "a b", "straße"]),
        ("[{id: 0, name: straße}]", list[Any], [{"id": 0, "name": "straße"}]),
        ("[]", list[str], []),
        ("5", str | int, 5),
        ("'5'", str | int, "5"),
        ("x", Path | None, "x"),
        ("1_000", int, 1000),
        ("1e3", float, 1000.0),
        ("[1,[2]]", list[Any], [1, [2]]),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ("null", int | None, None),
    ],
)
def test_other_values_are_numbers_lists_and_mappings(typed: str, hint: Any, value: Any) -> None:
    assert settings.value(settings.read(f"a.b={typed}"), hint) == value


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("/a b, /c", ["/a b", "/c"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a: 1,b: 2}", ["{a: 1,b: 2}"]),
        ("it's,b", ["it's", "b"]),
        ("choice(a,'b,c')", ["a", "'b,c'"]),
        ("range(1,4)", ["1", "2", "3"]),
        ("glob(*_r18)", ["fcn_r18", "unet_r18"]),
        ("/data/run(1)", ["/data/run(1)"]),
        ("f(x)", ["f(x)"]),
        ("f(x),g(y)", ["f(x)", "g(y)"]),
        ("(a,b", ["(a,b"]),
    ],
)
def test_values_of_a_sweep_stand_between_unquoted_commas(typed: str, parts: list[str]) -> None:
    names = ["fcn_r18", "unet", "unet_r18"]
    assert settings.several(settings.read(f"model={typed}"), names) == parts


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.root=", "dataset.root=: a value is missing"),
        ("dataset.root=''", "dataset.root=: a value is missing"),
        ("dataset.root=a\nb", r"dataset.root=a\\nb: holds a control character"),
        ("dataset.root", "dataset.root: not understood; settings are written key=value"),
        ("=5", "=5: not understood"),
        ("epochs=10", r"epochs: no such key. Write train.steps=... \(updates"),
        ("lr=0.01", "Write optimizer.lr=0.01"),
        ("train.lr=0.01", "train.lr: no such key. Write optimizer.lr=0.01"),
        ("gpus=2", "Write train.processes=2"),
        ("foo=1", "foo: no such key. segtrain --help lists them"),
        ("+foo=1", "foo: no such key"),
        ("++eval.scale=[1]", "Did you mean `eval.scales`?"),
        ("+model.depht=1", "DeepLabV3Plus has no such argument"),
        ("~train", "~train: only an argument of a part can be removed"),
        ("~train.steps", "train.steps=VALUE"),
        ("~model", "a model is chosen anew, model=NAME"),
        ("~model.nothing", "there is no model.nothing to remove"),
        ("train.steps=1,2", "several values are several runs: segtrain -m train.steps=1,2"),
        ("model=unet,fcn", "several values are several runs: segtrain -m model=unet,fcn"),
        ("dataset.crop=[1,2", r"dataset.crop=\[1,2: not understood"),
        ("eval.scales=1", r"a list is written eval.scales=\[1\]"),
        ("train.steps=abc", "train.steps=abc: Value 'abc'"),
        ("experiment=2026_11_29", "no such experiment"),
        ("hydra.job.env_set.X=1", "hydra.job.env_set.X=1: runs nothing and sets no variables"),
        ("hydra.job.chdir=true", "is no setting of a run"),
        ("hydra.mode=MULTIRUN", "is no setting of a run"),
        ("hydra/launcher=joblib", "is for the runs of a sweep; add -m"),
        ("hydra.run.dir=", "hydra.run.dir=: a value is missing"),
        ("hydra.searchpath=[nowhere]", "nowhere: no such folder of configs"),
        ("train.init=${nothing}", "train.init"),
    ],
)
def test_what_is_wrong_is_named_by_the_word_that_was_typed(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(compose_config([word])[0])


@pytest.mark.parametrize(
    "typed", ["2026_11_29", "a b=c#d", "'x,y'", "ü/$UNSET", "runs/${model.backbone}"]
)
def test_the_run_folder_is_what_was_typed(typed: str) -> None:
    meant = {"'x,y'": "x,y", "runs/${model.backbone}": "runs/resnet18"}.get(typed, typed)
    assert compose_config([f"hydra.run.dir={typed}"])[1] == Path(meant)


def test_nothing_can_be_chosen_where_nothing_need_be() -> None:
    assert compose_config(["experiment=null", "ablation=null"])[0] == compose_config([])[0]


def test_a_plus_sets_what_the_part_takes_and_a_tilde_gives_its_default_back() -> None:
    run = check(compose_config(["+model.norm=group", "++train.seed=3", "+model=unet"])[0])
    assert (run.model["_target_"], run.train.seed) == ("segtrain.models.unet.UNet", 3)
    assert run.model["norm"] == "group"
    plain = check(compose_config(["~model.output_stride"])[0])
    assert "output_stride" not in plain.model


def test_a_stored_run_takes_settings_by_the_same_rule() -> None:
    run = check(compose_config(["dataset=camvid", "dataset.root=2026_11"])[0])
    moved = with_overrides(run, ["dataset.root=~/1e3", "eval.output=007"])
    assert moved.dataset["root"] == f"{HOME}/1e3"
    assert moved.eval.output == "007"
    with pytest.raises(UserError, match=r"hydra.run.dir=x: says nothing about a run"):
        with_overrides(run, ["hydra.run.dir=x"])


@pytest.mark.parametrize("typed", list(TEXTS)[::4])
def test_what_is_stored_is_read_back_as_it_was_typed(typed: str, tmp_path: Path) -> None:
    cfg, _ = compose_config(["dataset=camvid", f"dataset.root={typed}"])
    (tmp_path / "config.yaml").write_text(stored_text(masked_container(cfg)))
    assert load_run(tmp_path / "config.yaml").dataset["root"] == TEXTS[typed]


def test_what_would_not_be_read_back_is_refused() -> None:
    cfg, _ = compose_config(["dataset=camvid", "dataset.root=\\${x}"])
    with pytest.raises(UserError, match="dataset"):
        stored_text(masked_container(cfg))
