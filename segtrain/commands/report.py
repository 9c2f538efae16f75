"""`segreport`: put runs side by side, on screen and as HTML, Markdown and CSV."""

from __future__ import annotations

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
from segtrain.errors import DiskError, UserError
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
    folders = find_runs(paths)
    runs = [
        read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)
    ]
    keys = differing(runs)
    rows = [row(run, keys) for run in runs]
    columns = used_columns(rows)
    out = out or (paths[0] if len(paths) == 1 else Path.cwd())
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
