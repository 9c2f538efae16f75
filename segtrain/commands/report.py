"""`segreport`: put runs side by side, on screen and as HTML, Markdown and CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from segtrain.commands.arguments import take
from segtrain.commands.report_page import page
from segtrain.commands.report_table import (
    MAX_TERMINAL_KEYS,
    csv_table,
    differing,
    find_runs,
    markdown_table,
    read_run,
    row,
    short_names,
    text_table,
    used_columns,
)
from segtrain.config.settings import as_text
from segtrain.errors import DiskError, UserError, check_name, check_names
from segtrain.runtime.files import replace_file

HELP = """segreport puts runs side by side: report.html, report.md, report.csv, a table on screen.

  segreport RUN_OR_SWEEP ... [output=DIR]"""


def run(arguments: list[str]) -> None:
    """Report on the runs of `segreport RUN_OR_SWEEP ... [output=DIR]`."""
    taken, _ = take([a for a in arguments if a.startswith(("output=", "-"))], "output")
    paths = [Path(as_text(a)) for a in arguments if not a.startswith("output=")]
    print(report(paths, Path(taken["output"]) if "output" in taken else None))


def report(paths: Sequence[Path], out: Path | None = None) -> str:
    """Write report.md, report.csv and report.html over all runs below `paths`.

    Returns the table for the terminal. `out` defaults to the given folder, or to the current one
    when several are given.
    Errors: UserError (nothing to report on), DiskError.
    """
    if not paths:
        raise UserError(
            "nothing to report on: give one or more run or sweep folders, e.g. segreport outputs/"
        )
    check_names("segreport", map(str, paths))
    folders = find_runs(paths)
    runs = [
        read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)
    ]
    keys = differing(runs)
    rows = [row(run, keys) for run in runs]
    columns = used_columns(rows)
    out = out or (paths[0] if len(paths) == 1 else Path.cwd())
    check_own(out)
    contents = {
        "report.md": markdown_table(rows, columns),
        "report.csv": csv_table(rows, columns),
        "report.html": page(runs, rows, columns, out),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace_file(out / name, content.encode())
    except OSError as error:
        raise DiskError(
            f"{out}: the report could not be written ({error.strerror}); choose another folder"
        ) from error
    hidden = keys[MAX_TERMINAL_KEYS:]
    more = f"{len(hidden)} more config keys differ; report.csv has them all\n" if hidden else ""
    table = text_table(rows, [column for column in columns if column not in hidden])
    return f"{table}\n{more}written to {out / 'report.html'} (and .md, .csv)"


# How our files begin: by that they are known, and only they are replaced.
BEGINNINGS = {
    "report.md": r"\| run \| status \|",
    "report.csv": r"run,status,",
    "report.html": r"<!doctype html>\n<html lang=\"en\"><head>.*<title>\d+ runs?</title><style>",
}


def check_own(out: Path) -> None:
    """Refuse a folder where a report would replace what segreport did not write.

    Errors: UserError.
    """
    check_name("output", out)
    for name, beginning in BEGINNINGS.items():
        path = out / name
        if not os.path.lexists(path):
            continue
        plain = path.is_file() and not path.is_symlink()
        if not plain or not re.match(beginning, path.read_text("utf-8", "replace")[:400]):
            raise UserError(
                f"{path}: was not written by segreport; choose another output=FOLDER, or move it "
                "away"
            )
