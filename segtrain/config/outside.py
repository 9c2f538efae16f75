"""Config folders from outside segtrain: what Hydra may read in them, and what it may not obey.

They are those of `--config-dir`, of `hydra.searchpath=[...]` and of trusted packages, and may come
from a stranger. Hydra would run what its own node says (callbacks, launchers, loggers, variables of
the environment), so of that node files decide only `FROM_FILES`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from segtrain.config import trust
from segtrain.config.bounds import MAX_DEPTH, bounded_text
from segtrain.config.schema import CONF_DIR
from segtrain.errors import UserError, printable

if TYPE_CHECKING:
    from hydra.plugins.config_source import ConfigSource

# What a file may say of Hydra's node.
FROM_FILES = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.sweeper.params")
# What Hydra itself writes into its node, differently for each command.
_WRITTEN_BY_HYDRA = (
    *("hydra.runtime", "hydra.overrides", "hydra.job.override_dirname", "hydra.job.config_name"),
)
_TYPED = ("hydra.searchpath",)  # where there are outside folders, we say it ourselves
_RULE = f"of Hydra's own settings a file decides only {', '.join(FROM_FILES)}"
MAX_FILES = 1000  # that one command reads; recipes build on each other a few files deep
SCHEME = "bounded"
SCHEMA = "schema"  # the types of a run, by this name in conf/train.yaml; a file would replace them

_read: list[Path] = []  # files of outside folders that the composition under way has read


def search_path(config_dirs: Sequence[str | Path], typed: Sequence[str]) -> list[str]:
    """Return the places where Hydra looks for configs after ours, each read within bounds.

    `typed` are those of `hydra.searchpath`. Errors: UserError where a config of a trusted package
    has the name of one of ours, which Hydra would find first.
    """
    for conf in trust.conf_folders().values():
        for file in conf.glob("*/*.yaml"):
            if (CONF_DIR / file.relative_to(conf)).exists():
                raise UserError(
                    f"{file}: segtrain has a {file.parent.name}={file.stem} of its own, which "
                    "would be used instead; give the file another name"
                )
    folders = [*config_dirs, *trust.conf_folders().values()]
    places = [f"file://{Path(folder).absolute()}" for folder in folders] + list(typed)
    register_source()
    _read.clear()
    return [
        place if place.startswith("pkg://") else f"{SCHEME}://{place.removeprefix('file://')}"
        for place in places
    ]


def folders_of(config_dirs: Sequence[str | Path], typed: Sequence[str]) -> list[Path]:
    """Return the folders among the places that `search_path` returns."""
    return [Path(folder) for folder in config_dirs] + [
        Path(place.removeprefix("file://")) for place in typed if not place.startswith("pkg://")
    ]


def register_source() -> None:
    """Tell Hydra how files of outside folders are read: no larger than a person's config."""
    from hydra._internal.sources_registry import SourcesRegistry

    SourcesRegistry.instance().register(_bounded_files())


@cache
def _bounded_files() -> type[ConfigSource]:
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.plugins.config_source import ConfigResult

    class BoundedFiles(FileConfigSource):
        """Hydra's source of files, with a look at each file before it is expanded."""

        @staticmethod
        def scheme() -> str:
            return SCHEME

        def load_config(self, config_path: str) -> ConfigResult:
            file = Path(self.path, self._normalize_file_name(config_path))
            if len(_read) >= MAX_FILES:
                raise UserError(f"{file}: a command reads no more than {MAX_FILES} config files")
            _read.append(file)
            if config_path.startswith("hydra/"):
                raise UserError(f"{file}: Hydra's own groups are not read from here; remove it")
            if config_path == SCHEMA:
                raise UserError(f"{file}: has the name of segtrain's own schema; rename it")
            if file.is_file():
                bounded_text(file)
            result = super().load_config(config_path)
            content = OmegaConf.to_container(result.config, resolve=False)
            package = result.header.get("package") or ""
            if "/" not in config_path and package in ("", "_group_"):
                package = "_global_"  # what lies in the folder itself stands at the top
            check_file(Path(self.path), config_path, package, content)
            return result

    return BoundedFiles


def check_file(folder: Path, config: str, package: str, content: Any) -> None:
    """Refuse a config of `folder` that says more than a file may, or stands for too many.

    `package` is that of its header, `content` plain types. Errors: UserError naming the file.
    """
    file = folder / f"{config}.yaml"
    _refuse_of_file(file, package, content)
    if _files_behind(folder, config, ()) > MAX_FILES:
        raise UserError(f"{file}: its defaults stand for more than {MAX_FILES} files")


def _files_behind(folder: Path, config: str, above: tuple[str, ...]) -> int:
    """Return how many files a config of `folder` stands for, with those its defaults name.

    A file that names the next one twice makes 2, 4, 8 ... of them. `above` are those that name it.
    """
    file = folder / f"{config}.yaml"
    if config in above or not file.is_file():
        return 1
    total = 1
    for name in _named_by(file, config):
        total += _files_behind(folder, name, (*above, config))
        if total > MAX_FILES or len(above) > MAX_DEPTH:
            return MAX_FILES + 1
    return total


def _named_by(file: Path, config: str) -> list[str]:
    """Return the configs that the defaults list of a file names, as paths without suffix."""
    try:
        content = yaml.safe_load(bounded_text(file))
    except (yaml.YAMLError, OSError):  # Hydra says what is wrong with it
        return []
    entries = content.get("defaults") if isinstance(content, Mapping) else None
    group = config.rpartition("/")[0]
    named: list[str] = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            for key, value in entry.items():
                below = str(key).split()[-1].partition("@")[0] if str(key).split() else ""
                base = below[1:] if below.startswith("/") else f"{group}/{below}".strip("/")
                names = value if isinstance(value, list) else [value]
                named += [f"{base}/{name}" for name in names]
        else:
            name = str(entry).partition("@")[0]
            named.append(name[1:] if name.startswith("/") else f"{group}/{name}".strip("/"))
    return named


def _refuse_of_file(file: Path, package: str, content: Any) -> None:
    """Refuse a file that sets more of Hydra's node than `FROM_FILES`. Errors: UserError."""
    if package.split(".")[0] == "hydra":
        raise UserError(f"{file}: its package is {package}; {_RULE}")
    said = content.get("hydra") if package == "_global_" and isinstance(content, Mapping) else None
    ours = dict(_leaves(_own_node(), "hydra"))
    for key, value in _leaves(said, "hydra"):
        if not _passes(key, FROM_FILES) and (key not in ours or value != ours[key]):
            raise UserError(f"{file}: sets {key}; {_RULE}")


@cache
def _own_node() -> Any:
    """Return what conf/train.yaml says of Hydra's node: a copy of it may say the same."""
    return yaml.safe_load((CONF_DIR / "train.yaml").read_text(encoding="utf-8"))["hydra"]


def _leaves(node: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Yield the paths of the values inside a mapping with them; none where there is nothing."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif node is not None:
        yield path, node


def _passes(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def refuse_hydra_settings(plain: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a composition that has more of Hydra's node than `FROM_FILES` from its files.

    `plain` and `own` are Hydra's node as plain types, with the outside folders and without. It
    stands behind the look at each file, as a defaults list can put a file anywhere. Errors:
    UserError naming the key.
    """
    for key in _different(plain, own, "hydra"):
        if not _passes(key, (*FROM_FILES, *_WRITTEN_BY_HYDRA, *_TYPED)):
            raise UserError(f"a config file sets {key}; {_RULE}")
    params = plain["sweeper"].get("params") if isinstance(plain.get("sweeper"), Mapping) else None
    for key in params or {}:
        if str(key).lstrip("+~").startswith("hydra"):
            raise UserError(f"hydra.sweeper.params: {key} is no setting of a run; leave it out")


def _different(plain: Any, own: Any, path: str) -> Iterable[str]:
    """Return the paths of values that `plain` has otherwise than `own`, or alone."""
    if not (isinstance(plain, Mapping) and isinstance(own, Mapping)):
        if plain != own:
            yield path
        return
    for key in {**own, **plain}:
        if key not in plain or key not in own:
            yield f"{path}.{key}"
        else:
            yield from _different(plain[key], own[key], f"{path}.{key}")


def check_written(key: str, folder: str, typed: bool) -> None:
    """Check a folder that a command will write to. Errors: UserError naming `key`.

    One that a person typed may lie anywhere; one of a file may hold no `..`.
    """
    if printable(folder) != folder:
        raise UserError(f"{key}={printable(folder)}: holds a control character")
    if not folder.strip():
        raise UserError(f"{key}=: names no folder")
    if not typed and ".." in folder.split(os.sep):
        raise UserError(
            f"{key}={folder}: comes from a file, so it may not lead upwards by `..`; type it, "
            f"{key}=FOLDER"
        )
