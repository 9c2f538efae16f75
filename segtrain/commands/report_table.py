"""The tables of `segreport`: a line per setting, and a row per run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from segtrain.commands.report_runs import Run, mapping, number
from segtrain.commands.report_settings import (
    Setting,
    Spread,
    evaluation_of,
    evaluations,
    gflops,
    latency,
    published,
    spread,
)
from segtrain.errors import printable
from segtrain.logs.clock import STAGES

Row = dict[str, Any]

MAX_TERMINAL_KEYS = 6  # differing config keys in the terminal's table; the files have all of them
# Numbers of instances and proposals that are shown beside the metric that decides, because those of
# a benchmark are read together.
INSTANCE_NUMBERS = (
    *(f"segm/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    "bbox/AP",
    *(f"{kind}/{name}" for kind in ("segm", "bbox") for name in ("AR@100", "AR@1000")),
)
CLASS_NUMBERS = ("segm/AP/", "bbox/AP/", "IoU/")  # what precedes the name of a class
COSTS = ("time", "parameters", "GFLOPs", "ms/image", "MiB", "images/s")
SHARES = tuple(f"{stage} %" for stage in STAGES)  # of the time
BEST = " *"  # behind the score of the best setting


def memory(run: Run) -> float | None:
    """Return the most memory that the run held, in MiB: the GPU's where it had one."""
    return number(run.summary.get("peak_gpu_memory_mib") or run.summary.get("peak_memory_mib"))


def share(run: Run, stage: str) -> float | None:
    """Return the percent of the time of a run's last start that went into a stage."""
    part = number(mapping(run.summary.get("shares")).get(stage))
    return None if part is None else 100 * part


def last_step(run: Run) -> float | None:
    """Return how far a run came."""
    steps = [step for line in run.lines if (step := number(line.get("step"))) is not None]
    return number(run.summary.get("step")) or max(steps, default=None)


def run_row(run: Run, keys: Sequence[str], setting: int | None) -> Row:
    """Return one run as unformatted values, None where there is nothing to say.

    `setting` is the number of the line that it is counted in.
    """
    final = run.final()
    best_step, best = run.best()
    measured = {
        f"eval/{e.name}/{name}": value
        for e in run.evaluations
        for name, value in e.numbers.items()
        if not name.startswith(CLASS_NUMBERS)
    }
    return {
        "run": run.name,
        "status": run.status,
        "setting": setting,
        "step": last_step(run),
        "of": run.config.get("train.steps"),
        **{key: run.config.get(key) for key in keys},
        "metric": run.metric,
        "best": best,
        "at step": best_step,
        "final": number(final.get(run.metric)),
        **{name: number(final.get(name)) for name in INSTANCE_NUMBERS},
        "pixAcc": number(final.get("pixAcc")),
        "val loss": number(final.get("loss")),
        **measured,
        "images/s": number(run.summary.get("images_per_second")),
        "time": number(run.summary.get("wall_seconds")),
        **{f"{stage} %": share(run, stage) for stage in STAGES},
        "parameters": number(run.summary.get("parameters")),
        "GFLOPs": gflops(run),
        "ms/image": latency(run),
        "MiB": memory(run),
        "problems": "; ".join(run.problems) or None,
    }


def setting_row(setting: Setting, keys: Sequence[str], measured: Sequence[str]) -> Row:
    """Return one setting as unformatted values; numbers of its runs are spreads."""

    def final(name: str) -> Spread | None:
        return setting.spread(lambda run: number(run.final().get(name)))

    header = published(setting)
    problems = [f"{run.name}: {text}" for run in setting.runs for text in run.problems]
    return {
        **{key: setting.value(key) for key in keys},
        "n": len(setting.counted),
        "metric": setting.metric,
        "best": setting.score,
        "at step": span([run.best()[0] for run in setting.counted]),
        "final": final(setting.metric),
        **{f"eval {n}": setting.spread(lambda run, n=n: evaluation_of(run, n)) for n in measured},
        "published": header.number if header else None,
        **{name: final(name) for name in INSTANCE_NUMBERS},
        "pixAcc": final("pixAcc"),
        "val loss": final("loss"),
        "images/s": setting.spread(lambda run: number(run.summary.get("images_per_second"))),
        "time": setting.spread(lambda run: number(run.summary.get("wall_seconds"))),
        **{f"{s} %": setting.spread(lambda run, s=s: share(run, s)) for s in STAGES},
        "parameters": setting.spread(lambda run: number(run.summary.get("parameters"))),
        "GFLOPs": setting.spread(gflops),
        "ms/image": setting.spread(latency),
        "MiB": setting.spread(memory),
        "status": setting.status,
        "step": span([last_step(run) for run in setting.runs]),
        "of": setting.runs[0].config.get("train.steps"),
        "run": setting.title,
        "problems": "; ".join(problems) or None,
    }


def setting_rows(settings: Sequence[Setting], keys: Sequence[str]) -> list[Row]:
    """Return a row per setting; the best one is marked."""
    measured = evaluations(settings)
    return [setting_row(setting, keys, measured) for setting in settings]


def span(values: Sequence[float | None]) -> str | None:
    """Return the smallest and the largest value, one where they are equal, None for none."""
    known = sorted({value for value in values if value is not None})
    return "-".join(f"{value:g}" for value in (known[:1] + known[1:][-1:])) or None


def shown(column: str, value: Any) -> str:
    """Format a value: fractions with four places, seconds as h:mm:ss, '-' for nothing.

    A spread is its mean, with the deviation where there is one and it says something.
    """
    if value is None:
        return "-"
    if isinstance(value, Spread):
        text = shown(column, value.mean)
        plain = column in COSTS or column in SHARES or value.deviation is None
        return text if plain else f"{text} ± {value.deviation:.4f}"
    if column == "time":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if column in SHARES:
        return f"{value:.0f}"
    if column in ("images/s", "ms/image"):
        return f"{value:.1f}"
    if column == "GFLOPs":
        return f"{value:.4g}"
    if column in ("parameters", "MiB"):
        return f"{value:,.0f}"
    if isinstance(value, float) and (
        column in ("best", "final", "pixAcc", "val loss", *INSTANCE_NUMBERS)
        or column.startswith(("eval ", "eval/"))
    ):
        return f"{value:.4f}"
    return printable(str(value))


def used_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns in which at least one row has something to say."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [column for column in columns if any(row.get(column) is not None for row in rows)]


def cells(settings: Sequence[Setting], rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Return the rows as text, the best one marked."""
    table = [{column: shown(column, row[column]) for column in columns} for row in rows]
    for setting, line in zip(settings, table, strict=True):
        if setting.best and "best" in line:
            line["best"] += BEST
    return table


def text_table(table: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the table with aligned columns, for a terminal."""
    lines = [list(map(printable, columns)), *([row[c] for c in columns] for row in table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown_table(table: Sequence[Row], columns: Sequence[str], notes: Sequence[str]) -> str:
    """Return the table as Markdown, the notes below it."""
    lines = [
        list(map(printable, columns)),
        ["---"] * len(columns),
        *([row[c] for c in columns] for row in table),
    ]
    text = "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
    return text + "".join(f"\n{printable(note)}\n" for note in notes)


def csv_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the table as CSV with full precision, empty cells for nothing.

    A spread is three columns: mean under the name itself, deviation and n behind it.
    """
    spreads = {c for c in columns if any(isinstance(row.get(c), Spread) for row in rows)}
    head: list[str] = []
    for column in columns:
        head += [column, f"{column} sd", f"{column} n"] if column in spreads else [column]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(printable, head))
    for row in rows:
        line: list[Any] = []
        for column in columns:
            value = row.get(column)
            if column in spreads:
                line += value if isinstance(value, Spread) else (value, None, None)
            else:
                line.append(printable(value) if isinstance(value, str) else value)
        writer.writerow(line)
    return buffer.getvalue()


class ClassColumn(NamedTuple):
    """The numbers by class of one setting and one kind, means over its runs."""

    setting: Setting
    kind: str  # IoU, segm/AP or bbox/AP
    values: dict[str, float]


def class_columns(settings: Sequence[Setting]) -> list[ClassColumn]:
    """Return the last validations' numbers of each class, a column per setting and kind."""
    columns = []
    for setting in settings:
        finals = [run.final() for run in setting.counted]
        for prefix in CLASS_NUMBERS:
            names = dict.fromkeys(
                key.removeprefix(prefix)
                for final in finals
                for key in final
                if key.startswith(prefix)
            )
            means = {
                name: spread([number(final.get(prefix + name)) for final in finals])
                for name in names
            }
            values = {name: mean.mean for name, mean in means.items() if mean is not None}
            if values:
                columns.append(ClassColumn(setting, prefix.rstrip("/"), values))
    return columns
