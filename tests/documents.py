"""The names of files, folders, tests and parts of segtrain that a document says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {f.name for f in (ROOT / "segtrain").iterdir() if (f / "__init__.py").exists()}
OURS = {"segtrain", "conf", "tests", "scripts", "docs", ".ci"}
TESTS = {
    name
    for file in (ROOT / "tests").rglob("*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
} | {file.stem for file in (ROOT / "tests").rglob("test_*.py")}


def defined(file: Path, name: str) -> bool:
    """Whether a module defines or imports `name` at its top level."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.FunctionDef(name=n) | ast.ClassDef(name=n):
                names.add(n)
            case ast.Assign(targets=targets):
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=n)):
                names.add(n)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {a.asname or a.name for a in aliases}
    return name in names


def is_name_of_segtrain(dotted: str) -> bool:
    """Whether `segtrain.folder.module.Name` and its shorter forms exist in the source."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        rest = parts[length:]
        if path.is_dir() and not rest:
            return True
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            if path == ROOT / "segtrain":
                file = ROOT / "segtrain" / "api.py"
            return not rest or defined(file, rest[0])
    return False


def missing(text: str) -> list[str]:
    """The names in backticks that look like ours and do not exist."""
    absent = []
    for token in re.findall(r"`([^`\n]+)`", text):
        first = token.split("/")[0]
        placeholder = re.search(r"\.\.|\b[A-Z]+\b", token)
        if (
            re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", token)
            and first in OURS | FOLDERS
            and not placeholder
        ):
            homes = (ROOT, ROOT / "segtrain")
            if not any((home / token).exists() for home in homes):
                absent.append(token)
        elif re.fullmatch(r"test_\w+(\.py)?", token):
            if token.removesuffix(".py") not in TESTS:
                absent.append(token)
        elif re.fullmatch(r"segtrain(\.\w+)+", token) and not is_name_of_segtrain(token):
            absent.append(token)
    return absent
