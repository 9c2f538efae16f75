"""A program that uses Hydra itself finds it as it was, whatever it asks of segtrain."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from commandline import hydra_here
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import segtrain
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.files import masked_container
from segtrain.config.hydra_state import version_base
from segtrain.config.jobs import expand
from segtrain.config.places import register_resolver
from segtrain.config.recipe_line import recipe_line
from segtrain.errors import UserError


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A config of the calling program, with names that segtrain has too."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("depth: 7\n")
    (tmp_path / "app.yaml").write_text("defaults: [model: mine, _self_]\nwhen: ${now:%Y}\n")
    return tmp_path


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave no Hydra of these tests to the next ones."""
    instances = dict(Singleton._instances)
    resolvers = dict(BaseContainer._resolvers)
    stored = dict(ConfigStore.instance().repo)
    yield
    Singleton._instances = instances
    GlobalHydra.instance().clear()
    BaseContainer._resolvers = resolvers
    ConfigStore.instance().repo = stored


def state() -> dict[str, Any]:
    """All that Hydra and OmegaConf keep in this process: the objects, and what is in them."""

    def names(node: Any) -> Any:
        return {k: names(v) for k, v in node.items()} if isinstance(node, dict) else id(node)

    Plugins.instance()
    return {
        "singletons": {kind: id(made) for kind, made in Singleton._instances.items()},
        "inside": {
            kind.__name__: names(vars(made))
            for kind, made in Singleton._instances.items()
            if kind is not Plugins
        },
        "plugins": len(Plugins.instance().class_name_to_class),
        "resolvers": dict(BaseContainer._resolvers),
    }


def ask_briefly() -> None:
    """One run that is composed, and one that is refused when it is composed already."""
    assert segtrain.compose(["train.seed=3"]).train.seed == 3
    with pytest.raises(UserError):
        segtrain.compose(["train.init=${a}"])


def ask_for_all() -> None:
    """All of segtrain that composes, and what it refuses at every depth."""
    run = segtrain.compose(["model=pspnet", "dataset=voc", "train.init=${oc.env:HOME}"])
    assert run.recipe == "pspnet101_voc"
    assert recipe_line(run)
    assert with_overrides(run, ["inference=slide"]).inference["window"] == [473, 473]
    ask_briefly()
    with pytest.raises(UserError):
        with_overrides(run, ["dataset=nothing"])


def test_nothing_is_used_that_hydra_and_omegaconf_will_remove() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfg, _ = compose_config(["train.seed=3", "optimizer.lr=0.5", "hydra.run.dir=x"])
        assert check(cfg).train.seed == 3
        assert masked_container(cfg)["optimizer"]["lr"] == 0.5
        assert [job.cfg.train.seed for job in expand(["train.seed=4"]).jobs] == [4]


def test_inside_an_initialize_context_compose_goes_on_with_the_callers_configs(conf: Path) -> None:
    another = dict.fromkeys(version_base(), "1.2")  # Hydra 1.4 has none
    with hydra.initialize_config_dir(str(conf), **another):
        first = hydra.compose("app")
        before = state()
        loader = GlobalHydra.instance().config_loader()
        ask_for_all()
        assert state() == before
        assert GlobalHydra.instance().config_loader() is loader
        assert hydra.compose("app") == first
        assert first.model.depth == 7


def test_inside_a_hydra_main_app_its_config_and_resolvers_are_as_before(
    conf: Path, tmp_path: Path
) -> None:
    seen = []

    @hydra.main(config_path=str(conf), config_name="app", **version_base())
    def app(cfg: Any) -> None:
        before = state()
        mine = HydraConfig.get()
        ask_briefly()
        assert state() == before
        assert HydraConfig.get() is mine
        assert mine.job.config_name == "app"
        seen.append((cfg.model.depth, len(cfg.when)))

    with hydra_here():
        sys.argv = ["app", f"hydra.run.dir={tmp_path / 'run'}", "hydra/job_logging=none"]
        app()
    assert seen == [(7, 4)]


def test_what_the_caller_stored_and_registered_stays_his(conf: Path) -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node={"mine": 1})  # the name of segtrain's own
    store.store(group="recipe", name="pspnet101_voc", node={"mine": 2})
    register_resolver("oc.env", lambda name: f"mine of {name}")
    register_resolver("now", lambda text: f"never {text}")
    before = state()
    ask_briefly()
    assert state() == before
    assert ConfigStore.instance() is store
    assert store.load("schema.yaml").node == {"mine": 1}
    assert OmegaConf.create({"a": "${oc.env:X}", "b": "${now:Y}"}) == {
        "a": "mine of X",
        "b": "never Y",
    }


def test_where_hydra_was_never_used_it_is_not_initialised_afterwards() -> None:
    GlobalHydra.instance().clear()
    OmegaConf.clear_resolver("hydra")
    ask_briefly()
    assert not GlobalHydra.instance().is_initialized()
    assert not OmegaConf.has_resolver("hydra")
