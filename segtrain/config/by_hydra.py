"""What Hydra composes of our configs and of a user's: the groups, and nothing else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain.config import outside
from segtrain.config.hydra_state import stored, version_base
from segtrain.config.primary import OURS
from segtrain.config.schema import CONF_DIR, RunConf, one_line
from segtrain.errors import UserError

_NOTHING = "nothing"  # a config without any setting


def compose(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Return what Hydra composes, its own node too. Errors: UserError."""
    from hydra import compose as composed

    try:
        with initialized():
            cfg = composed(config_name, list(overrides), return_hydra_config=True)
    except UserError:
        raise
    except RecursionError:
        raise UserError("config: its files name each other without end") from None
    except Exception as error:
        if not _of_a_config(error):
            raise
        cause = one_line(error.__cause__) if error.__cause__ is not None else ""
        text = one_line(error)
        detail = f" ({cause})" if cause and cause not in text else ""
        raise UserError(f"{text or 'config: cannot be composed'}{detail}") from error
    return cfg


@contextmanager
def initialized() -> Generator[None]:
    """Let Hydra know our configs inside the block."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with schema_stored(), initialize_config_dir(str(CONF_DIR), **version_base()):
        yield


def schema_stored() -> AbstractContextManager[None]:
    """Keep the types of a run in Hydra's store inside the block, where conf/train.yaml has them."""
    return stored(outside.SCHEMA, RunConf)


def _of_a_config(error: Exception) -> bool:
    """Tell whether an error is about what the files say, and not a fault of ours."""
    from hydra.errors import HydraException

    if isinstance(error, HydraException | OSError | UnicodeDecodeError):
        return True
    # Of what a file holds in its defaults list or header, Hydra says by these.
    from_hydra = isinstance(error, ValueError | TypeError | KeyError | AttributeError)
    libraries = ("omegaconf", "antlr4", "yaml")
    return from_hydra or type(error).__module__.startswith(libraries)


@cache
def own_node() -> dict[str, Any]:
    """Return Hydra's node as our own configs make it, as plain types."""
    return _node(compose([], OURS))


@cache
def _unsaid_node() -> dict[str, Any]:
    """Return Hydra's node where no config says anything of it."""
    with stored(_NOTHING, {}):
        return _node(compose([], _NOTHING))


def take_unsaid(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Set each of `keys` of Hydra's node that no file behind `cfg` has said as it is in our own."""
    for key in keys:
        if _written(_node(cfg), key) == _written(_unsaid_node(), key):
            OmegaConf.update(cfg, key, _written(own_node(), key))


def _node(cfg: DictConfig) -> dict[str, Any]:
    """Return Hydra's node of a composed config as plain types, its interpolations as text."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return plain["hydra"]


def _written(node: Any, key: str) -> Any:
    """Return the value of a key `hydra.NAME.NAME` as it is written."""
    for name in key.split(".")[1:]:
        node = node[name]
    return node
