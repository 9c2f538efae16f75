"""Instantiate: from `_target_` nodes to objects, for configs that may come from a stranger.

`check` reads the target's source (`sources.py`) and compares every value with the annotation of its
argument. Only then does `build` import the one module that defines the target, and call it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from segtrain.config.settings import at_home
from segtrain.config.sources import Target, resolve, show
from segtrain.errors import SegtrainError, UserError, did_you_mean, words_of

# Values that fit an annotation as they are. `True` is no int here, although it is one in Python.
_FITS: dict[Any, tuple[type, ...]] = {kind: (kind,) for kind in (int, bool, str, NoneType)}
_FITS |= {float: (float, int), Any: (NoneType, bool, int, float, str)}

Make = Callable[[Mapping[str, Any], str], Any]  # what is done with a node inside a node


class _Mismatch(Exception):
    """A value does not fit its annotation; another member of a union may."""


def check(
    node: Mapping[str, Any], path: str, skip: Collection[str] = (), given: Collection[str] = ()
) -> None:
    """Check a `_target_` node, and the nodes inside it, without importing anything.

    `path` is the key of the node in the config, for messages. `skip` are keys that are no
    constructor arguments; `given` are the arguments that code will pass.
    Errors: UserError naming the key, the value and the nearest known word.
    """
    try:
        _read(node, path, skip, given, make=check)
    except _Mismatch as error:
        raise UserError(str(error)) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


def build(node: Mapping[str, Any], path: str = "", skip: Collection[str] = (), **given: Any) -> Any:
    """Check a node, build the nodes inside it, and call its target with their values and `given`.

    Lists become tuples where the annotation says tuple. Errors: what `check` raises, and UserError
    with the constructor's own words where it rejects a value.
    """
    check(node, path, skip, given)
    target, arguments = _read(node, path, skip, given, make=build)
    called = _imported(target, path)
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
        raise UserError(
            f"{path or 'config'}: {target.name} refuses these values: {words_of(error)}"
        ) from error


def _imported(target: Target, path: str) -> Callable[..., Any]:
    """Import the target's module and return the object, if it is the one that was read."""
    try:
        module = importlib.import_module(target.module)
    except ImportError as error:
        raise UserError(
            f"{path or 'config'}: {target.module} cannot be imported: {error}"
        ) from error
    named = vars(module).get(target.name)
    same_file = Path(str(module.__file__)).resolve() == target.file.resolve()
    defined_there = isinstance(named, Callable) and (named.__module__, named.__qualname__) == (
        target.module,
        target.name,
    )
    if not (same_file and defined_there):
        raise UserError(
            f"{path or 'config'}: {target.module}.{target.name} is not what its source file defines"
        )
    return named


def _read(
    node: Mapping[str, Any], path: str, skip: Collection[str], given: Collection[str], make: Make
) -> tuple[Target, dict[str, Any]]:
    """Return the target of a node and its converted arguments; nodes inside go through `make`."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"{path or 'config'}: expected a mapping with a `_target_`, got {show(node)}"
        )
    target = resolve(node["_target_"], _join(path, "_target_"))
    known = target.parameters
    foreign = [name for name in given if name not in known]
    if foreign:
        raise UserError(
            f"{path or 'config'}: {target.name} cannot stand here, it takes no `{foreign[0]}`"
        )
    arguments: dict[str, Any] = {}
    for key, value in node.items():
        if key == "_target_" or key in skip:
            continue
        here = _join(path, key)
        if key not in known:
            raise UserError(f"{here}: {target.name} has no such argument.{_near(key, known)}")
        if key in given:
            raise UserError(f"{here}: segtrain sets this itself; remove it from the config")
        if not known[key].annotated and not _is_node(value):
            raise UserError(
                f"{here}: {target.name} does not say of which type it is; annotate `{key}` in "
                f"{target.module}, e.g. {key}: int"
            )
        arguments[key] = _convert(value, known[key].hint, here, make)
    for key, parameter in known.items():
        if parameter.required and key not in arguments and key not in given:
            raise UserError(f"{_join(path, key)}: {target.name} needs a value here")
    return target, arguments


# Values


def _is_node(value: Any) -> bool:
    return type(value) is dict and "_target_" in value


def _convert(value: Any, hint: Any, path: str, make: Make) -> Any:
    """Return `value` as its annotation wants it, a node through `make`.

    Errors: _Mismatch where it does not fit; UserError.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if _is_node(value) and (object in options or Any in options):
        return make(value, path)
    if len(options) > 1:
        for option in options:
            try:
                return _convert(value, option, path, make)
            except _Mismatch:
                continue
        # No member fits. A union matches nothing below, so the error names all its members.
    kind = get_origin(hint) or hint
    inner = get_args(hint)
    if type(value) in _FITS.get(kind, ()):
        return value
    if kind is Path and type(value) is str:
        return at_home(value)
    if kind is Literal and any(type(value) is type(word) and value == word for word in inner):
        return value
    if type(value) is list and kind in (list, tuple, Any):
        fixed = kind is tuple and inner and inner[-1] is not ...
        hints = inner if fixed else (inner[:1] or (Any,)) * len(value)
        if len(hints) == len(value):
            items = [
                _convert(item, of_item, f"{path}[{index}]", make)
                for index, (item, of_item) in enumerate(zip(value, hints, strict=True))
            ]
            return tuple(items) if kind is tuple else items
    if type(value) is dict and kind in (dict, Any):
        hidden = [key for key in value if str(key).startswith("_")]
        if hidden:
            raise UserError(
                f"{_join(path, hidden[0])}: keys that begin with an underscore are not allowed"
            )
        of_key, of_item = inner or (Any, Any)
        return {
            _convert(key, of_key, path, make): _convert(item, of_item, _join(path, key), make)
            for key, item in value.items()
        }
    words = [
        word for option in options if get_origin(option) is Literal for word in get_args(option)
    ]
    near = _near(value, words)
    if type(value) in (bool, int, float, str) and any(map(_is_list, options)):
        near = f" A list of one is written [{value!s:.40}].{near}"
    raise _Mismatch(f"{path}: expected {_describe(hint)}, got {show(value)}.{near}")


def _is_list(hint: Any) -> bool:
    """Tell whether an annotation is a list of any length."""
    kind = get_origin(hint) or hint
    return kind is list or (kind is tuple and (not get_args(hint) or get_args(hint)[-1] is ...))


def _describe(hint: Any) -> str:
    """Return an annotation in the user's words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    names = {object: "a mapping with a _target_", NoneType: "null", Any: "plain data"}
    names[Path] = "a path"
    return names.get(hint) or (
        str(hint).replace("typing.", "") if get_args(hint) else hint.__name__
    )


def _join(path: str, key: Any) -> str:
    """Return the dotted path of a key inside a node."""
    shown = key if type(key) is str and key.isidentifier() else show(key)
    return f"{path}.{shown}" if path else shown


def _near(word: Any, known: Iterable[Any]) -> str:
    return did_you_mean(word, known) if type(word) is str else ""
