"""Write the table of folders in docs/architecture.md from the folders' own first lines.

    python scripts/architecture_table.py           writes the table
    python scripts/architecture_table.py --check   exit code 1 where the page is out of date

Each `segtrain/FOLDER/__init__.py` says in one sentence what the folder is for, and in one more what
it may import. The architecture test reads the same lines, so the page cannot say anything else.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- folders: written by scripts/architecture_table.py -->"
END = "<!-- end of folders -->"


def folders() -> dict[str, tuple[str, list[str]]]:
    """Return what each folder is for and what it may import, by its name."""
    read = {}
    for init in sorted((ROOT / "segtrain").glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        purpose, _, line = text.partition("\n\nMay import: ")
        read[init.parent.name] = (purpose, line.rstrip(".").replace("\n", " ").split(", "))
    return read


def from_the_ground(read: dict[str, tuple[str, list[str]]]) -> list[str]:
    """Return the names of the folders, each after all that it imports."""
    order: list[str] = []
    while len(order) < len(read):
        ready = [
            name
            for name, (_, imports) in read.items()
            if name not in order and all(i in order or i not in read for i in imports)
        ]
        if not ready:
            raise SystemExit(f"folders import each other: {sorted(set(read) - set(order))}")
        order += sorted(ready)
    return order


def table() -> str:
    """Return the table, what is read first at the top."""
    read = folders()
    rows = ["| folder | what it does | may import |", "|---|---|---|"]
    for name in reversed(from_the_ground(read)):
        purpose, imports = read[name]
        rows.append(f"| `{name}/` | {purpose} | {', '.join(f'`{i}`' for i in imports)} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """Return the page with today's table between its two marks."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", page)


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` say whether it is up to date."""
    page = PAGE.read_text(encoding="utf-8")
    if arguments == ["--check"]:
        if page == with_table(page):
            return 0
        print(f"{PAGE.relative_to(ROOT)} is out of date: run python scripts/architecture_table.py")
        return 1
    PAGE.write_text(with_table(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
