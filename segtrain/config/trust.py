"""Trust the packages that may bring parts of a run: those that the person at the keyboard names.

`--trust mylab`, `SEGTRAIN_TRUST=mylab` or `trust=["mylab"]` in Python. Trust is never read from a
file, a config or a checkpoint, which may come from a stranger. It holds for one command or call.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from segtrain.errors import UserError

FLAG = "--trust"
VARIABLE = "SEGTRAIN_TRUST"  # names of packages with commas between them
OWN = "segtrain"
# Never looked for: setuptools takes a look for it as pip's own start, and leaves the whole process
# without its distutils, which torch.compile needs.
INSTALLER = "pip"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NOT_ASKED: Mapping[str, Path] = MappingProxyType({})
_trusted: ContextVar[Mapping[str, Path]] = ContextVar("trusted", default=_NOT_ASKED)


def folders() -> Mapping[str, Path]:
    """Return the folder of every trusted package by its name."""
    return _trusted.get()


def conf_folders() -> dict[str, Path]:
    """Return the `conf` folder of every trusted package that has one."""
    confs = {name: folder / "conf" for name, folder in folders().items()}
    return {name: conf for name, conf in confs.items() if conf.is_dir()}


def flags() -> list[str]:
    """Return the arguments that hand our trust on to a process that we start."""
    return [word for name in folders() for word in (FLAG, name)]


def command(*words: str) -> str:
    """Return `segtrain WORDS` as the user would type it now, with the packages trusted here."""
    return " ".join(["segtrain", *flags(), *(shlex.quote(word) for word in words)])


def in_commands(message: str) -> str:
    """Return a message in which `segtrain resume=` has the packages that are trusted here."""
    return message.replace("segtrain resume=", f"{command()} resume=")


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the package names of `--trust NAME` (repeatable) and the other arguments.

    Errors: UserError where the name is missing.
    """
    names: list[str] = []
    others: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == FLAG:
            if not left:
                raise UserError(f"{FLAG}: name a package, {FLAG} PACKAGE")
            names.append(left.pop(0))
        elif argument.startswith(f"{FLAG}="):
            names.append(argument.partition("=")[2])
        elif argument.partition("=")[0] == "trust":
            raise UserError(f"{argument}: trust is no setting; write {FLAG} PACKAGE")
        else:
            others.append(argument)
    return [name for given in names for name in given.split(",")], others


@contextmanager
def trusting(names: Iterable[str]) -> Generator[None]:
    """Trust the packages `names` inside the block, beside those trusted already.

    Packages of `SEGTRAIN_TRUST` are trusted too: the variable is read once, by the outermost block,
    which stands before any config is read. Nothing is imported. Errors: UserError.
    """
    if isinstance(names, str):
        raise UserError(f'trust="{names}": give a list of package names, trust=["{names}"]')
    known = folders()
    variable = os.environ.get(VARIABLE, "") if known is _NOT_ASKED else ""
    wanted = [*names, *(name.strip() for name in variable.split(",") if name.strip())]
    added = {name: known.get(name) or package_folder(name) for name in wanted}
    token = _trusted.set({**known, **added})
    try:
        yield
    finally:
        _trusted.reset(token)


@cache
def may_be_trusted(name: str) -> bool:
    """Return whether a package of this name may bring parts, or might once it is installed."""
    if _NAME.fullmatch(name) is None or name == OWN or name in sys.stdlib_module_names:
        return False
    if name == INSTALLER:
        return False
    init = _init_file(name)
    owner = _owner(name, init) if init else None
    return owner is None or _normalised(owner) not in foundation()


def _init_file(name: str) -> Path | None:
    """Return the file that `import name` would run first, None where there is no such package."""
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return None
    return Path(spec.origin).resolve()


def _spec(name: str) -> ModuleSpec | None:
    """Return what `import name` would import; of a top-level name nothing is imported for it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def package_folder(name: str) -> Path:
    """Return the folder of an installed package that may bring parts. Errors: UserError."""
    if type(name) is not str or _NAME.fullmatch(name) is None:
        raise UserError(
            f"{FLAG} {_short(name)}: not the name of a package; give the one word that stands "
            f"behind `import`, without dots or slashes: {FLAG} mylab"
        )
    if name == OWN:
        raise UserError(f"{FLAG} {name}: segtrain's own parts need no trust; leave it out")
    if name in sys.stdlib_module_names:
        raise UserError(
            f"{FLAG} {name}: belongs to Python and holds no parts of a run; name your own package"
        )
    if name == INSTALLER:
        raise UserError(_founding(name))
    init = _init_file(name)
    if init is None and (spec := _spec(name)) and spec.origin is not None:
        raise UserError(
            f"{FLAG} {name}: is a single file; make it a folder {name}/ with an __init__.py "
            "and its parts in files beside that"
        )
    if init is None:
        raise UserError(_not_installed(name))
    owner = _owner(name, init)
    if owner is None:
        raise UserError(_not_installed(name, init.parent))
    if _normalised(owner) in foundation():
        raise UserError(_founding(name))
    return init.parent


def _founding(name: str) -> str:
    """Say that a package is one that segtrain needs."""
    return (
        f"{FLAG} {name}: segtrain itself stands on it, and it holds no parts of a run; "
        "name your own package"
    )


def _owner(name: str, init: Path) -> str | None:
    """Return the name of the installed distribution that brings `init`, the package's __init__.py.

    An editable installation lists no files of the package, but the folder of its project.
    """
    for distribution in metadata.distributions():
        url = json.loads(distribution.read_text("direct_url.json") or "{}")
        if url.get("dir_info", {}).get("editable"):
            project = Path(unquote(urlsplit(url["url"]).path)).resolve()
            if init.is_relative_to(project):
                return distribution.name
        elif Path(str(distribution.locate_file(f"{name}/__init__.py"))).resolve() == init:
            record = distribution.read_text("RECORD") or ""
            if f"\n{name}/__init__.py," in f"\n{record}":
                return distribution.name
    return None


@cache
def foundation() -> frozenset[str]:
    """Return the names of all distributions that segtrain needs, directly or through others.

    Parts come from packages that need segtrain, never from those that it needs: who trusted torch
    would let a config call any class in it.
    """
    needed: set[str] = set()
    pending = [OWN, INSTALLER]
    while pending:
        name = _normalised(pending.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        pending += [
            re.split(r"[^\w.-]", line, maxsplit=1)[0]
            for line in requirements
            if "extra ==" not in line
        ]
    return frozenset(needed)


def _normalised(name: str) -> str:
    """Return the name of a distribution as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _not_installed(name: str, folder: Path | None = None) -> str:
    """Say in one line how an importable or merely present package becomes an installed one."""
    for project in (Path.cwd(), Path.cwd() / "src"):
        if folder is None and (project / name).is_dir():
            folder = (project / name).resolve()
    if folder is None:
        return (
            f"{FLAG} {name}: no package of this name is installed for {sys.executable}; "
            "install it there with pip"
        )
    project = folder.parent.parent if folder.parent.name == "src" else folder.parent
    shown = "." if project == Path.cwd().resolve() else shlex.quote(str(project))
    first = ""
    if not (project / "pyproject.toml").is_file():
        first = "give it a pyproject.toml, then "
    return (
        f"{FLAG} {name}: {folder} is not installed, so not every process of a run would find it; "
        f"{first}pip install -e {shown}"
    )


def _short(name: object) -> str:
    """Return any value in a short printable form."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
