"""`_target_` nodes -> objects, for configs that may come from a stranger.

`check` reads the *source* of the target with `ast` and imports nothing: a target must be a class (in `optim` and
`schedule` also a function) defined at the top level of one of our part modules, and every value must fit the annotation
of its argument. Only then does `build` import that one module and call. No attribute is ever walked, so
`segtrain.checkpoints.writing.shutil.copyfile` has no meaning here.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from segtrain.errors import SegtrainError, UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
PARTS = (
    "data",
    "datasets",
    "backbones",
    "models",
    "losses",
    "inference",
    "metrics",
    "optim",
    "logs",
)
ONLY_FILES = {"logs": "writers"}  # the other modules of such a folder hold no parts
FUNCTIONS = ("optim",)  # elsewhere functions are helpers, and some of them read files or download

_TARGET = re.compile(
    r"([a-z][a-z0-9_]*)\.([a-z][a-z0-9_]*)((?:\.[a-z][a-z0-9_]*)*)\.([A-Za-z][A-Za-z0-9_]*)"
)
_TYPES: dict[str, Any] = {"Any": Any} | {
    kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)
}
_FITS: dict[Any, tuple[type, ...]] = {kind: (kind,) for kind in (int, bool, str, NoneType)}
_FITS |= {float: (float, int), Any: (NoneType, bool, int, float, str)}

Make = Callable[[Mapping[str, Any], str], Any]


class _Parameter(NamedTuple):
    hint: Any  # int, list[float], Literal["a", "b"] | None ...; `object` for every type that is not plain data
    required: bool


class _Target(NamedTuple):
    module: str
    name: str
    parameters: dict[str, _Parameter]


class _Mismatch(Exception):
    """A value does not fit its annotation; another member of a union may."""


def check(
    node: Mapping[str, Any], path: str, skip: Collection[str] = (), given: Collection[str] = ()
) -> None:
    """Check a `_target_` node, and the nodes inside it, without importing anything.

    `path` is the node's place in the config, for messages. `skip` are keys that are no constructor arguments; `given`
    are the arguments that code will pass. Errors: UserError naming the key, the value and the nearest known word.
    """
    try:
        _read(node, path, skip, given, make=check)
    except _Mismatch as error:
        raise UserError(str(error)) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


def build(node: Mapping[str, Any], path: str = "", skip: Collection[str] = (), **given: Any) -> Any:
    """Check a node, build the nodes inside it, and call its target with the node's values and `given`.

    Lists become tuples where the annotation says tuple. Errors: what `check` raises, and UserError with the
    constructor's own words where it rejects a value.
    """
    check(node, path, skip, given)
    target, arguments = _read(node, path, skip, given, make=build)
    called = _fetch(target, path)
    try:
        return called(**arguments, **given)
    except SegtrainError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path or 'config'}: {target.name} refuses these values: {words}"
        ) from error


def _fetch(target: _Target, path: str) -> Callable[..., Any]:
    """Import the target's module and take the object, if it is still the one that the source defines."""
    try:
        found = getattr(importlib.import_module(target.module), target.name, None)
    except ImportError as error:
        raise UserError(
            f"{path or 'config'}: {target.module} cannot be imported: {error}"
        ) from error
    origin = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if origin != (target.module, target.name) or not callable(found):
        raise UserError(
            f"{path or 'config'}: {target.module}.{target.name} is not what its source file defines"
        )
    return found


def _read(
    node: Mapping[str, Any], path: str, skip: Collection[str], given: Collection[str], make: Make
) -> tuple[_Target, dict[str, Any]]:
    """The target of a node and its arguments, checked and converted; nodes inside it go through `make`."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"{path or 'config'}: expected a mapping with a `_target_`, got {_show(node)}"
        )
    target = _resolve(node["_target_"], _join(path, "_target_"))
    known = target.parameters
    if foreign := [name for name in given if name not in known]:
        raise UserError(
            f"{path or 'config'}: {target.name} cannot stand here, it takes no `{foreign[0]}`"
        )
    arguments = {}
    for key, value in node.items():
        if key == "_target_" or key in skip:
            continue
        if key not in known:
            raise UserError(
                f"{_join(path, key)}: {target.name} has no such argument.{_near(key, known)}"
            )
        if key in given:
            raise UserError(
                f"{_join(path, key)}: segtrain sets this itself; remove it from the config"
            )
        arguments[key] = _convert(value, known[key].hint, _join(path, key), make)
    if missing := [
        k for k, p in known.items() if p.required and k not in arguments and k not in given
    ]:
        raise UserError(f"{_join(path, missing[0])}: {target.name} needs a value here")
    return target, arguments


def _resolve(target: Any, path: str) -> _Target:
    """Find the target in the source of our part modules."""
    match = _TARGET.fullmatch(target) if type(target) is str else None
    if match is None or match[1] != PACKAGE.name:
        raise UserError(
            f"{path}: {_show(target)} is no part of segtrain; one reads {PACKAGE.name}.models.FILE.CLASS"
        )
    module, name = f"{match[1]}.{match[2]}{match[3]}", match[4]
    if match[2] not in PARTS:
        raise UserError(
            f"{path}: {_show(target)}: parts are in {', '.join(PARTS)}.{did_you_mean(match[2], PARTS)}"
        )
    tree = _parse(module)
    if only := ONLY_FILES.get(match[2]):
        tree = tree if match[3] == f".{only}" else None
    if tree is None:
        files = (p.relative_to(PACKAGE).with_suffix("").parts for p in PACKAGE.rglob("[a-z]*.py"))
        near = did_you_mean(
            module, (".".join([PACKAGE.name, *parts]) for parts in files if parts[0] in PARTS)
        )
        raise UserError(f"{path}: there is no module {module}.{near}")
    kinds = (ast.ClassDef, ast.FunctionDef) if match[2] in FUNCTIONS else (ast.ClassDef,)
    defined = {s.name: s for s in tree.body if isinstance(s, kinds) and not s.name.startswith("_")}
    if name not in defined:
        kind = "class or function" if match[2] in FUNCTIONS else "class"
        raise UserError(f"{path}: {module} defines no {kind} {name}.{did_you_mean(name, defined)}")
    return _Target(module, name, _parameters(module, defined[name]))


# Values


def _convert(value: Any, hint: Any, path: str, make: Make) -> Any:
    """`value` as its annotation wants it; raises _Mismatch where it does not fit."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if type(value) is dict and "_target_" in value and (object in options or Any in options):
        return make(value, path)
    for option in options if len(options) > 1 else ():
        try:
            return _convert(value, option, path, make)
        except _Mismatch:
            continue
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if type(value) in _FITS.get(kind, ()):
        return value
    if kind is Literal and any(type(value) is type(word) and value == word for word in inner):
        return value
    if type(value) is list and kind in (list, tuple, Any):
        fixed = kind is tuple and inner and inner[-1] is not ...
        hints = inner if fixed else (inner[:1] or (Any,)) * len(value)
        if len(hints) == len(value):
            made = [
                _convert(v, h, f"{path}[{i}]", make)
                for i, (v, h) in enumerate(zip(value, hints, strict=True))
            ]
            return tuple(made) if kind is tuple else made
    if type(value) is dict and kind in (dict, Any):
        if hidden := [key for key in value if str(key).startswith("_")]:
            raise UserError(
                f"{_join(path, hidden[0])}: keys that begin with an underscore are not allowed"
            )
        of_key, of_item = inner or (Any, Any)
        return {
            _convert(k, of_key, path, make): _convert(v, of_item, _join(path, k), make)
            for k, v in value.items()
        }
    words = [
        word for option in options if get_origin(option) is Literal for word in get_args(option)
    ]
    raise _Mismatch(f"{path}: expected {_describe(hint)}, got {_show(value)}.{_near(value, words)}")


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    names = {object: "a mapping with a _target_", NoneType: "null", Any: "plain data"}
    return names.get(hint) or (
        str(hint).replace("typing.", "") if get_args(hint) else hint.__name__
    )


def _join(path: str, key: Any) -> str:
    shown = key if type(key) is str and key.isidentifier() else _show(key)
    return f"{path}.{shown}" if path else shown


def _near(word: Any, known: Iterable[Any]) -> str:
    return did_you_mean(word, known) if type(word) is str else ""


def _show(value: Any) -> str:
    """The value in one short line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of more than 4,300 digits have no repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


# Source files


def _parse(module: str) -> ast.Module | None:
    """The source of one of our own modules, None for any other."""
    package, *rest = module.split(".")
    file = PACKAGE.joinpath(*rest).with_suffix(".py")
    return _parse_file(file) if package == PACKAGE.name and rest and file.is_file() else None


@cache
def _parse_file(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """The top-level statement that defines `name`, followed through imports from our own modules, and its module."""
    tree = _parse(module)
    for statement in tree.body if tree else ():
        match statement:
            case ast.ClassDef(name=found) | ast.Assign(targets=[ast.Name(id=found)]) if (
                found == name
            ):
                return module, statement
            case ast.ImportFrom(module=str(source), names=names, level=0):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _definition(source, alias.name)
    return None


def _hint(annotation: ast.expr | None, module: str) -> Any:
    """An annotation as a `typing` object, aliases such as `Mode = Literal["a", "b"]` resolved; nothing is evaluated."""
    match annotation:
        case ast.Constant(value=None):
            return NoneType
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Name(id=name):
            origin = _definition(module, name)
            return (
                _hint(origin[1].value, origin[0])
                if origin and isinstance(origin[1], ast.Assign)
                else object
            )
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _hint(left, module) | _hint(right, module)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
            return Literal[ast.literal_eval(words)]  # ty: ignore[invalid-type-form]
        case ast.Subscript(value=ast.Name(id="list" | "tuple" | "dict" as name), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            hints = (
                ... if isinstance(p, ast.Constant) and p.value is ... else _hint(p, module)
                for p in parts
            )
            return _TYPES[name][tuple(hints)]
    return object  # also without an annotation: nothing is known, so nothing plain may stand here


def _parameters(module: str, statement: ast.stmt) -> dict[str, _Parameter]:
    """The arguments of a function, or of a class: its `__init__`, its dataclass fields, or those of its base."""
    if isinstance(statement, ast.FunctionDef):
        spec = statement.args
        defaults = [None] * (len(spec.args) - len(spec.defaults)) + spec.defaults + spec.kw_defaults
        pairs = zip([*spec.args, *spec.kwonlyargs], defaults, strict=True)
        return {
            a.arg: _Parameter(_hint(a.annotation, module), default is None) for a, default in pairs
        }
    if not isinstance(statement, ast.ClassDef):
        return {}
    for inner in statement.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return dict(list(_parameters(module, inner).items())[1:])  # without self
    found: dict[str, _Parameter] = {}
    for base in statement.bases:
        if isinstance(base, ast.Name) and (origin := _definition(module, base.id)):
            found |= _parameters(*origin)
    if any(
        ast.unparse(decorator).startswith("dataclass") for decorator in statement.decorator_list
    ):
        fields = [
            f
            for f in statement.body
            if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
        ]
        found |= {
            ast.unparse(f.target): _Parameter(_hint(f.annotation, module), f.value is None)
            for f in fields
        }
    return found
