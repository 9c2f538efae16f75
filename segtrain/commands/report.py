"""`segreport`: put runs side by side, on screen and as HTML, Markdown and CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from segtrain.commands.arguments import take
from segtrain.commands.flags import take_config_dirs
from segtrain.commands.report_images import comparisons
from segtrain.commands.report_page import Findings, page
from segtrain.commands.report_runs import find_runs, read_run, short_names
from segtrain.commands.report_settings import (
    Setting,
    differing,
    footnotes,
    label,
    listed,
    settings_of,
    swept,
    verdict,
)
from segtrain.commands.report_table import (
    MAX_TERMINAL_KEYS,
    cells,
    csv_table,
    markdown_table,
    run_row,
    setting_rows,
    share,
    text_table,
    used_columns,
)
from segtrain.config.settings import as_text
from segtrain.errors import DiskError, UserError, check_name, check_names, printable
from segtrain.runtime.files import replace_file

HELP = """segreport puts runs side by side and says which is best.

  segreport RUN_OR_SWEEP ... [output=DIR]

Runs that differ only in train.seed are one line: mean, deviation (n - 1) and n. Leaves report.html,
one file that opens anywhere, report.md, report.csv (a row per run) and report_settings.csv (a row
per line)."""


def run(arguments: list[str]) -> None:
    """Report on the runs of `segreport RUN_OR_SWEEP ... [output=DIR]`."""
    config_dirs, arguments = take_config_dirs("segreport", arguments)
    places = [word for word in arguments if word.startswith("hydra.searchpath=")]
    if config_dirs or places:
        raise UserError(
            f"{places[0] if places else '--config-dir'}: segreport reads the configs that the runs "
            "have stored, which are whole; leave it out"
        )
    taken, _ = take([a for a in arguments if a.startswith(("output=", "-"))], "output")
    paths = [Path(as_text(a)) for a in arguments if not a.startswith("output=")]
    print(report(paths, Path(taken["output"]) if "output" in taken else None))


def report(paths: Sequence[Path], out: Path | None = None) -> str:
    """Write report.html, .md and .csv and report_settings.csv over all runs below `paths`.

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
    settings, unbegun = settings_of(runs)
    typed, others = swept(settings)
    keys = [*typed, *others]
    rows = setting_rows(settings, keys)
    columns = shown_columns(used_columns(rows), settings)
    decided = verdict(settings)
    compared = comparisons(settings, RIVALS)
    names = typed or others
    lines = [decided] if decided else []
    lines += [
        f"image by image (eval {c.evaluation}): {label(c.first, names)} minus "
        f"{label(c.second, names)}: {c.in_words()}"
        for c in [c for c in compared if c.second is compared[0].second][:MAX_LINES]
    ]
    notes = footnotes(settings)
    if unbegun:
        count = len(unbegun)
        notes.append(
            f"without any number, never begun or failed at once: {count} ({listed(unbegun)})"
        )
    place = {id(run): setting.number for setting in settings for run in setting.runs}
    every_key = differing(runs)
    run_rows = [run_row(run, every_key, place.get(id(run))) for run in runs]
    out = out or (paths[0] if len(paths) == 1 else Path.cwd())
    check_own(out)
    numbered = [{"setting": s.number, **row} for s, row in zip(settings, rows, strict=True)]
    run_columns = used_columns(run_rows)
    found = Findings(
        runs, settings, typed, others, rows, columns, run_rows, run_columns, lines, compared, notes
    )
    said = [*lines, *notes]
    contents = {
        "report.md": f"{MARK}\n" + markdown_table(cells(settings, rows, columns), columns, said),
        "report.csv": csv_table(run_rows, run_columns),
        "report_settings.csv": csv_table(numbered, ["setting", *columns]),
        "report.html": page(found),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace_file(out / name, content.encode())
    except OSError as error:
        raise DiskError(
            f"{out}: the report could not be written ({error.strerror}); choose another folder"
        ) from error
    hidden = keys[MAX_TERMINAL_KEYS:] if len(typed) > MAX_TERMINAL_KEYS or not typed else others
    more = f"{len(hidden)} more config keys differ; report.csv has them all" if hidden else ""
    kept = [column for column in columns if column not in hidden]
    table = text_table(cells(settings, rows, kept), kept) if settings else ""
    files = f"written to {out / 'report.html'} (and .md, .csv, report_settings.csv)"
    return "\n".join(line for line in (table, more, *map(printable, said), files) if line)


def shown_columns(columns: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """Leave out what says nothing: a count of seeds that is always one, and steps of complete runs.

    One who looks at complete runs does not ask how far they came.
    """
    quiet = set()
    if all(len(setting.runs) == 1 for setting in settings):
        quiet.add("n")
    if all(run.complete for setting in settings for run in setting.runs):
        quiet |= {"step", "of", "status"}
    if not any((share(r, "log") or 0) >= 1 for setting in settings for r in setting.counted):
        quiet.add("log %")
    return [column for column in columns if column not in quiet]


RIVALS = 5  # settings that the best one is compared with image by image
MAX_LINES = 3  # evaluations that are compared on the terminal
MARK = "<!-- written by segreport -->"
# How our files begin, today's and those of the versions before: by that they are known, and only
# they are replaced.
BEGINNINGS = {
    "report.md": rf"{MARK}|\| run \| status \|",
    "report.csv": r"run,status,",
    "report_settings.csv": r"setting[,\n]",
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
