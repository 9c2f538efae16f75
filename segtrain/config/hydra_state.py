"""Hydra's state lies in singletons of the process, which may be another program's: leave it alone.

Whoever composes a run from Python may stand inside an `@hydra.main` of his own.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from segtrain.config.places import resolvers_kept

_ONE_AT_A_TIME = threading.RLock()  # the singletons are those of all threads


@contextmanager
def left_alone() -> Generator[None]:
    """Give the block a Hydra of its own, and the caller's back afterwards, as it was.

    That is whether Hydra is initialised and with which configs, `HydraConfig`, the `ConfigStore`,
    the version base, and the resolvers of OmegaConf.
    """
    import hydra.conf  # noqa: F401 - stores Hydra's own configs, once in a process
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from hydra.plugins.config_source import ConfigSource

    with _ONE_AT_A_TIME, resolvers_kept():
        plugins = Plugins.instance()  # finding them stores theirs
        stored = ConfigStore.instance().repo
        before = Singleton._instances
        own: dict[Any, Any] = {Plugins: plugins}
        Singleton._instances = own
        try:
            for source in plugins.discover(ConfigSource):
                assert issubclass(source, ConfigSource)
                SourcesRegistry.instance().register(source)
            ConfigStore.instance().repo = _folders_copied(stored)
            yield
        finally:
            Singleton._instances = before


def _folders_copied(repo: Any) -> Any:
    """Return the store's nested folders anew; the configs in them are never changed."""
    if not isinstance(repo, dict):
        return repo
    return {name: _folders_copied(below) for name, below in repo.items()}


def version_base() -> dict[str, str]:
    """Return the argument by which Hydra 1.3 does as it does, and which later ones do without."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


@contextmanager
def stored(name: str, node: Any, group: str = "", package: str | None = None) -> Generator[None]:
    """Keep a config in Hydra's store inside the block, in place of one of this name."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    folder = store.repo.setdefault(group, {}) if group else store.repo
    before = folder.pop(f"{name}.yaml", None)
    store.store(name=name, node=node, group=group or None, package=package)
    try:
        yield
    finally:
        del folder[f"{name}.yaml"]
        if before is not None:
            folder[f"{name}.yaml"] = before
