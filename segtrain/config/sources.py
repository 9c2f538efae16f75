"""Read the source of a `_target_`: which class it names and which arguments that takes.

Nothing is imported and no attribute is walked, so `segtrain.checkpoints.writing.shutil.copyfile`
has no meaning here. A target is a class at the top level of one of our part modules, or of any
module of a package that the user trusts; where an optimizer or a schedule stands it may be a
function.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple

from segtrain.config import trust
from segtrain.errors import UserError, did_you_mean

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
# The other modules of such a folder hold no parts.
ONLY_FILES = {"logs": ("writers", "wandb_writer", "mlflow_writer")}
FUNCTIONS = ("optim",)  # elsewhere functions are helpers, and some of them read files or download
MADE_BY_FUNCTIONS = ("optimizer", "schedule")  # where a trusted package's function may stand

_TARGET = re.compile(
    r"(?P<package>[A-Za-z][A-Za-z0-9_]*)(?P<modules>(\.[A-Za-z][A-Za-z0-9_]*)+)"
    r"\.(?P<name>[A-Za-z][A-Za-z0-9_]*)"
)
_PLAIN: dict[str, Any] = {"Any": Any} | {
    kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict, Path)
}
# What people write for the same things; `Sequence` is given the list that the config holds.
_PLAIN |= {"List": list, "Tuple": tuple, "Dict": dict, "Sequence": list, "Mapping": dict}


class Parameter(NamedTuple):
    """One argument of a target."""

    hint: Any  # int, list[float], Literal["a", "b"] | None ...; `object`: not plain data
    required: bool
    annotated: bool


class Target(NamedTuple):
    """A class or function that a config names, as its source defines it."""

    module: str
    name: str
    file: Path
    parameters: dict[str, Parameter]


def resolve(target: Any, path: str) -> Target:
    """Find a `_target_` in the source of our parts or of a trusted package.

    `path` is the key of the `_target_` in the config, for messages. Errors: UserError.
    """
    match = _TARGET.fullmatch(target) if type(target) is str else None
    package = match["package"] if match else ""
    if match is None or (package != PACKAGE.name and package not in trust.folders()):
        raise UserError(f"{path}: {show(target)} {_stranger(package)}")
    module = package + match["modules"]
    name = match["name"]
    if package == PACKAGE.name:
        folder, *files = match["modules"].split(".")[1:]
        if folder not in PARTS or not module.islower():
            raise UserError(
                f"{path}: {show(target)}: parts are in {', '.join(PARTS)}."
                f"{did_you_mean(folder, PARTS)}"
            )
        functions = folder in FUNCTIONS
        hidden = folder in ONLY_FILES and ".".join(files) not in ONLY_FILES[folder]
    else:
        functions = path.split(".")[0] in MADE_BY_FUNCTIONS
        hidden = False
    file = module_file(module)
    if hidden or file is None or file.name == "__init__.py":
        near = did_you_mean(module, _part_modules(package))
        raise UserError(f"{path}: there is no module {module}.{near}")
    kinds = (ast.ClassDef, ast.FunctionDef) if functions else (ast.ClassDef,)
    defined = {
        statement.name: statement
        for statement in parse(file).body
        if isinstance(statement, kinds) and not statement.name.startswith("_")
    }
    if name not in defined:
        kind = "class or function" if functions else "class"
        raise UserError(f"{path}: {module} defines no {kind} {name}.{did_you_mean(name, defined)}")
    return Target(module, name, file, parameters(module, defined[name]))


def _stranger(package: str) -> str:
    """Say what is wrong with a target outside segtrain and trusted packages, and the way out."""
    own = f"is no part of segtrain; one reads {PACKAGE.name}.models.FILE.CLASS"
    if package in trust.folders():
        return f"is no part; one reads {package}.FILE.CLASS"
    if not trust.may_be_trusted(package):
        return own
    return (
        f"comes from the package {package}, which is not trusted here; if you know it, "
        f"add {trust.FLAG} {package} (in Python: trust=['{package}'])"
    )


def module_file(module: str) -> Path | None:
    """Return the source file of a module of ours or of a trusted package, None for any other."""
    package, *rest = module.split(".")
    folder = PACKAGE if package == PACKAGE.name else trust.folders().get(package)
    if folder is None:
        return None
    for file in (folder.joinpath(*rest).with_suffix(".py"), folder.joinpath(*rest, "__init__.py")):
        if file.is_file() and file.is_relative_to(folder):
            return file
    return None


def _part_modules(package: str) -> Iterator[str]:
    """Name the modules of a package that may hold parts."""
    folder = PACKAGE if package == PACKAGE.name else trust.folders()[package]
    for file in folder.rglob("[A-Za-z]*.py"):
        words = file.relative_to(folder).with_suffix("").parts
        if package != PACKAGE.name or words[0] in PARTS:
            yield ".".join([package, *words])


def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a source file, read anew when the file has changed.

    Errors: UserError where it is no Python.
    """
    return _parse(file, file.stat().st_mtime_ns)


@cache
def _parse(file: Path, _changed: int) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        where = f"{file}:{line}" if line else f"{file}"
        raise UserError(f"{where}: is not Python ({error.args[0]})") from error


# Names and annotations


def _imported(module: str, statement: ast.ImportFrom) -> str:
    """Return the absolute name of the module that a `from ... import` of `module` reads."""
    if not statement.level:
        return statement.module or ""
    file = module_file(module)
    words = module.split(".")
    up = statement.level - (file is not None and file.name == "__init__.py")
    return ".".join([*words[: len(words) - up], *filter(None, [statement.module])])


def _definition(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Return the module and the top-level statement that define `name`.

    Imports from modules of ours and of trusted packages are followed; other names give None.
    """
    file = module_file(module)
    for statement in parse(file).body if file else ():
        match statement:
            case ast.ClassDef(name=defined) | ast.Assign(targets=[ast.Name(id=defined)]) if (
                defined == name
            ):
                return module, statement
            case ast.ImportFrom(names=names):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _definition(_imported(module, statement), alias.name)
    return None


def _module_named(module: str, name: str) -> str:
    """Return the module that `name` stands for at the top level of `module`, or ""."""
    file = module_file(module)
    for statement in parse(file).body if file else ():
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return f"{_imported(module, statement)}.{alias.name}"
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.asname == name or alias.name == name:
                    return alias.name
    return ""


def _base(module: str, base: ast.expr) -> tuple[str, ast.stmt] | None:
    """Return the definition of a base class: `Net`, `fcn.FCN` or `Net[int]`."""
    match base:
        case ast.Subscript(value=generic):
            return _base(module, generic)
        case ast.Name(id=name):
            return _definition(module, name)
        case ast.Attribute(value=ast.Name(id=holder), attr=name):
            return _definition(_module_named(module, holder), name)
    return None


def _hint(annotation: ast.expr | None, module: str) -> Any:
    """Return an annotation as a `typing` object; nothing is evaluated.

    Aliases such as `Mode = Literal["a", "b"]` are resolved. What is no plain data gives `object`.
    """
    match annotation:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):  # an annotation in quotes
            try:
                return _hint(ast.parse(text, mode="eval").body, module)
            except SyntaxError:
                return object
        case ast.Attribute(value=ast.Name(id="typing" | "t" | "pathlib"), attr=name):
            return _hint(ast.Name(id=name), module)
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name]
        case ast.Name(id=name):
            origin = _definition(module, name)
            if origin and isinstance(origin[1], ast.Assign):
                return _hint(origin[1].value, origin[0])
            return object
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _hint(left, module) | _hint(right, module)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _subscript(name, inner, module)
    return object  # also without an annotation: nothing is known, so nothing plain may stand here


def _subscript(name: str, inner: ast.expr, module: str) -> Any:
    """Return `Literal["a"]`, `Optional[int]`, `list[int]` ... as a `typing` object."""
    words = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        if not all(isinstance(word, ast.Constant) for word in words):
            return object
        return Literal[ast.literal_eval(inner)]  # ty: ignore[invalid-type-form]
    hints: list[Any] = [
        ... if isinstance(w, ast.Constant) and w.value is ... else _hint(w, module) for w in words
    ]
    if name == "Optional":
        return hints[0] | None
    if name == "Union":
        union = hints[0]
        for hint in hints[1:]:
            union = union | hint
        return union
    return _PLAIN[name][tuple(hints)] if name in _PLAIN and name != "Any" else object


def parameters(module: str, statement: ast.stmt) -> dict[str, Parameter]:
    """Return the arguments of a function, or of a class.

    Those of a class are its `__init__`'s, its dataclass fields, or its bases'.
    """
    if isinstance(statement, ast.FunctionDef):
        spec = statement.args
        positional = [*spec.posonlyargs, *spec.args]
        required: list[None] = [None] * (len(positional) - len(spec.defaults))
        defaults = [*required, *spec.defaults, *spec.kw_defaults]
        pairs = zip([*positional, *spec.kwonlyargs], defaults, strict=True)
        return {
            argument.arg: Parameter(
                _hint(argument.annotation, module),
                required=default is None,
                annotated=argument.annotation is not None,
            )
            for argument, default in pairs
        }
    if not isinstance(statement, ast.ClassDef):
        return {}
    for inner in statement.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return dict(list(parameters(module, inner).items())[1:])  # without self
    inherited: dict[str, Parameter] = {}
    for base in reversed(statement.bases):  # the first base has the last word, as in Python
        if origin := _base(module, base):
            inherited |= parameters(*origin)
    decorators = [ast.unparse(decorator) for decorator in statement.decorator_list]
    if any(text.removeprefix("dataclasses.").startswith("dataclass") for text in decorators):
        for field in statement.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                inherited[field.target.id] = Parameter(
                    _hint(field.annotation, module), required=field.value is None, annotated=True
                )
    return inherited


def show(value: Any) -> str:
    """Return the value in one short line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of more than 4,300 digits have no repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
