"""The page of `segreport`: one file that needs no server, no network and no other file.

The tables are HTML, so that they are read without a script; plotly draws the plots from the JSON in
the page (`page.js`), when they come near the window. What stands in runs may be a stranger's:
everything goes through `html.escape`, or into JSON without a `<`.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from segtrain.commands.report_images import Comparison
from segtrain.commands.report_runs import Run, number
from segtrain.commands.report_settings import (
    SEED,
    Setting,
    Spread,
    evaluations,
    gflops,
    label,
    latency,
)
from segtrain.commands.report_table import (
    Row,
    class_columns,
    memory,
    shown,
)
from segtrain.errors import DataError, printable

MAX_POINTS = 400  # of one curve
ALL_POINTS = 60_000  # of all curves: more makes a page slow to open
MIN_POINTS = 50  # of one curve, however many runs there are
SHOWN_AT_FIRST = 8  # settings whose curves are on; more lines hide each other
SEARCHED = 15  # rows from which a table has a field to search it
MAX_KEYS = 40  # config differences that are listed openly
CLASS_SETTINGS = 12  # columns of the heat table
PICTURES = 4  # of one run
PICTURE_SETTINGS = 6  # the best ones, whose pictures are shown
MATRICES = 3  # confusion matrices
RANK = re.compile(r"^\d{2,}_")  # before the name of a worst image
PICTURE_SIDE = 900  # pixels
PICTURE_BYTES = 6_000_000  # of all pictures: a mail takes the page
# The first ten are told apart by most eyes (Okabe and Ito, and darker ones of Tableau's).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f5fc9", "#8c564b")
# Nothing is loaded from anywhere, whatever a run's folder makes the page say.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
COSTS = ("parameters", "GFLOPs", "ms/image", "images/s", "MiB", "minutes")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Findings:
    """What a report says: the settings in their order, the rows of the table, what is said of them.

    `typed` and `others` are the keys that differ, `rows` and `columns` those of the settings, a row
    each, `run_rows` and `run_columns` those of all runs.
    """

    runs: Sequence[Run]
    settings: Sequence[Setting]
    typed: Sequence[str]
    others: Sequence[str]
    rows: Sequence[Row]
    columns: Sequence[str]
    run_rows: Sequence[Row]
    run_columns: Sequence[str]
    verdict: Sequence[str]
    comparisons: Sequence[Comparison]
    notes: Sequence[str]


def page(found: Findings) -> str:
    """Return the page."""
    plots: list[dict[str, Any]] = []
    sections = [
        ("differences", "What differs", differences(found)),
        ("settings", "Settings", settings_table(found)),
        ("curves", "Curves", curves(found, plots)),
        ("cost", "Accuracy against cost", cost(found, plots)),
        ("images", "Image by image", by_image(found, plots)),
        ("classes", "By class", by_class(found)),
        ("pictures", "Pictures", pictures(found)),
        ("runs", "Every run", runs_table(found)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{content}</section>\n'
        for name, title, content in sections
    )
    count = len(found.runs)
    title = f"{count} run{'s' * (count != 1)}"
    groups = len(found.settings)
    heading = title if groups == count else f"{title}, {groups} setting{'s' * (groups != 1)}"
    verdict = "".join(f'<p class="verdict">{text(line)}</p>' for line in found.verdict)
    data = {"settings": legend(found), "plots": plots}
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>\n{(HERE / 'page.css').read_text('utf-8')}</style>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>\n'
        f'<body><header><div class="top"><h1>{heading}</h1><nav>{links}</nav>'
        f'<button id="theme">light / dark</button></div>{verdict}</header>\n<main>\n{body}</main>\n'
        "<dialog></dialog>\n"
        f'<script type="application/json" id="data">{as_json(data)}</script>\n'
        f"<script>\n{(HERE / 'page.js').read_text('utf-8')}</script>\n"
        f"<script>{get_plotlyjs()}</script></body></html>\n"
    )


def text(value: object) -> str:
    """Return a text as HTML that shows it: no markup, no control characters."""
    return html.escape(printable(str(value)))


def as_json(data: Any) -> str:
    """Return data as JSON that cannot end the script it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def color(index: int) -> str:
    """Return the colour of one setting. Steps of the golden angle keep any number apart."""
    if index < len(COLORS):
        return COLORS[index]
    return f"hsl({index * 137.5 % 360:.0f}, 60%, 48%)"


def named(found: Findings, setting: Setting) -> str:
    """Return a short name of a setting."""
    return label(setting, [*found.typed] or [*found.others])


def legend(found: Findings) -> list[dict[str, Any]]:
    """Return name and colour of every setting, and whether its curves are on at first."""
    return [
        {"name": named(found, setting), "color": color(i), "on": i < SHOWN_AT_FIRST}
        for i, setting in enumerate(found.settings)
    ]


# ---------------------------------------------------------------------- tables


def differences(found: Findings) -> str:
    """Return the config keys that differ, each with its values and how many settings have them."""
    keys = [*found.typed, *found.others]
    if not keys:
        return ""
    items = []
    for key in keys:
        values = Counter(str(setting.value(key)) for setting in found.settings)
        words = [
            f"{text(value)} <span class=n>({count})</span>" if count > 1 else text(value)
            for value, count in values.most_common(12)
        ]
        more = f", and {len(values) - 12} more" if len(values) > 12 else ""
        items.append(f"<dt>{text(key)}</dt><dd>{', '.join(words)}{more}</dd>")
    first = max(len(found.typed), 0 if len(keys) > MAX_KEYS else len(keys)) or len(keys[:MAX_KEYS])
    hidden = items[first:]
    rest = (
        f"<details><summary>{len(hidden)} more keys differ</summary>"
        f'<dl class="differs">{"".join(hidden)}</dl></details>'
    )
    return f'<dl class="differs">{"".join(items[:first])}</dl>\n{rest if hidden else ""}'


def cell(column: str, value: Any) -> str:
    """Return one cell of a table; it sorts by the number itself."""
    plain = value.mean if isinstance(value, Spread) else value
    known = number(plain)
    words = text(shown(column, value))
    mean, sign, deviation = words.partition(" ± ")
    if sign:
        words = f'{mean} <span class="spread">± {deviation}</span>'
    if known is not None:
        return f'<td class="number" data-v="{known!r}">{words}</td>'
    wide = len(words) > 40
    return f'<td class="long" title="{words}">{words}</td>' if wide else f"<td>{words}</td>"


def table(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    before: Sequence[str],
    heads: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return a table that can be sorted and searched.

    `before` holds the start of each row, <tr> and maybe a first cell; `heads` what stands above a
    column in place of its name.
    """
    first = "<th></th>" if before and "<td>" in before[0] else ""
    head = first + "".join(
        f"<th data-sort{' class=number' * any(number_like(row.get(c)) for row in rows)}>"
        f"{text(heads.get(c, c))}</th>"
        for c in columns
    )
    body = "".join(
        f"{start}{''.join(cell(c, row.get(c)) for c in columns)}</tr>\n"
        for start, row in zip(before, rows, strict=True)
    )
    search = (
        f'<div class="tools"><input type="search" data-table="{name}" placeholder="rows with …" '
        'aria-label="show rows with these words"></div>\n'
    )
    return (
        f'{search * (len(rows) > SEARCHED)}<div class="scroll"><table id="{name}">'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def number_like(value: Any) -> bool:
    """Whether a value is shown as a number."""
    return isinstance(value, Spread) or number(value) is not None


def settings_table(found: Findings) -> str:
    """Return the settings, ranked, with a switch for the curves of each, and the notes."""
    starts = [
        f"<tr{' class=best' * setting.best}><td>"
        f'<input type="checkbox" data-s="{i}" aria-label="curves of line {i + 1}"'
        f"{' checked' * (i < SHOWN_AT_FIRST)}>"
        f'<span class="swatch" style="background:{color(i)}"></span></td>'
        for i, setting in enumerate(found.settings)
    ]
    buttons = (
        '<div class="tools">curves: <button data-show="best">best '
        f'{min(SHOWN_AT_FIRST, len(starts))}</button><button data-show="all">all</button>'
        '<button data-show="none">none</button></div>\n'
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    columns = list(found.columns)
    metrics = {setting.metric for setting in found.settings}
    if len(metrics) == 1:  # then it stands in the heads, and takes no column
        columns.remove("metric")
    heads = {name: f"{name} {'/'.join(metrics)}" for name in ("best", "final") if len(metrics) == 1}
    same = alike(found, columns)
    columns = [column for column in columns if column not in same]
    alike_words = ", ".join(f"{text(name)} {text(value)}" for name, value in same.items())
    return (
        (buttons if len(starts) > 1 else "")
        + (table("by-setting", columns, found.rows, starts, heads) if starts else "")
        + (f'<p class="alike">the same in all: {alike_words}</p>\n' if same else "")
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def alike(found: Findings, columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that say the same of all settings, which tell none from another.

    They stand below the table, which is then as wide as what differs. The score stays.
    """
    same = {}
    for column in columns if len(found.rows) > 1 else ():
        values = {shown(column, row.get(column)) for row in found.rows}
        if column == "final" and all(row.get("final") == row.get("best") for row in found.rows):
            same[column] = "as best"
        elif len(values) == 1 and column not in ("best", *found.typed, *found.others):
            same[column] = values.pop()
    return same


def runs_table(found: Findings) -> str:
    """Return a row per run, where that is not what the settings show already."""
    if len(found.runs) == len(found.settings) and len(found.runs) > 1:
        return ""
    starts = ["<tr>"] * len(found.run_rows)
    content = table("by-run", found.run_columns, found.run_rows, starts)
    return f"<details><summary>a row per run</summary>\n{content}</details>\n"


def by_class(found: Findings) -> str:
    """Return the numbers by class as a heat table, "" where there are none.

    The last column is what the best setting has more than the next one of the same kind.
    """
    columns = class_columns(found.settings)[:CLASS_SETTINGS]
    if not columns:
        return ""
    classes = list(dict.fromkeys(name for column in columns for name in column.values))
    heads = ["class", *(f"{column.kind} {named(found, column.setting)}" for column in columns)]
    rival = next((c for c in columns[1:] if c.kind == columns[0].kind), None)
    if rival is not None:
        heads.append("first minus second")
    rows = ""
    for name in classes:
        values = [column.values.get(name) for column in columns]
        cells = "".join(map(heat_cell, values))
        if rival is not None:
            cells += change_cell(columns[0].values.get(name), rival.values.get(name))
        rows += f"<tr><td>{text(name)}</td>{cells}</tr>\n"
    head = "".join(
        f"<th data-sort{' class=number' * (i > 0)}>{text(words)}</th>"
        for i, words in enumerate(heads)
    )
    whole = f"the best {CLASS_SETTINGS} columns; " if len(columns) == CLASS_SETTINGS else ""
    return (
        f"<p>{whole}in percent, of the last validation, means over seeds</p>\n"
        f'<div class="scroll"><table class="heat" id="by-class"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def heat_cell(value: float | None) -> str:
    """Return a cell whose colour says how large a fraction is: from white to a deep blue."""
    if value is None:
        return "<td>-</td>"
    share = min(max(value, 0.0), 1.0)
    dark = " dark" * (share > 0.6)
    color = f"hsl(210 70% {96 - 58 * share:.0f}%)"
    shown_as = f"{100 * value:.1f}"
    return f'<td class="heated{dark}" style="background:{color}" data-v="{value!r}">{shown_as}</td>'


def change_cell(first: float | None, second: float | None) -> str:
    """Return a cell with a difference: blue where the first is better, red where it is worse.

    A tenth is the deepest colour: classes differ by less than that, mostly.
    """
    if first is None or second is None:
        return "<td>-</td>"
    change = first - second
    depth = min(abs(change) / 0.1, 1.0)
    color = f"hsl({210 if change >= 0 else 10} 75% {96 - 30 * depth:.0f}%)"
    words = f"{100 * change:+.1f}"
    return f'<td class="heated" style="background:{color}" data-v="{change!r}">{words}</td>'


# ---------------------------------------------------------------------- plots


def thinned(points: list[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points of a curve, the last one always among them."""
    stride = -(-len(points) // most)
    return points[::-1][::stride][::-1] if points else []


def plot(plots: list[dict[str, Any]], spec: dict[str, Any]) -> str:
    """Add a plot to the data of the page, and return where it is drawn."""
    plots.append(spec)
    return f'<div class="plot" data-plot="{len(plots) - 1}"></div>\n'


def curves(found: Findings, plots: list[dict[str, Any]]) -> str:
    """Return the curves of losses and of what decides, a line per run, with their switches."""
    metrics = dict.fromkeys(setting.metric for setting in found.settings)
    wanted = [("val", name, f"validation {name}") for name in metrics if name != "loss"]
    wanted += [("val", "loss", "validation loss"), ("train", "loss", "training loss")]
    most = max(MIN_POINTS, min(MAX_POINTS, ALL_POINTS // (len(found.runs) * len(wanted))))
    drawn = ""
    for phase, name, title in wanted:
        lines = list(curve_lines(found, phase, name, most))
        if lines:
            axes = {"title": printable(title), "x": "step", "y": printable(name)}
            marks = phase == "val"
            drawn += plot(
                plots,
                {"kind": "curves", **axes, "lines": lines, "loss": name == "loss", "marks": marks},
            )
    tools = (
        '<div class="tools"><label>smoothing <input id="smooth" type="range" min="0" max="0.98" '
        'step="0.02" value="0"><span id="smooth-value">0.00</span></label>'
        '<label><input id="log" type="checkbox">loss logarithmic</label>'
        "<span>drag to zoom, double click to see all</span></div>\n"
    )
    return f'{tools}<div class="grid">\n{drawn}</div>\n' if drawn else ""


def curve_lines(found: Findings, phase: str, name: str, most: int) -> Iterator[dict[str, Any]]:
    """Yield the curve of each run that has one."""
    for index, setting in enumerate(found.settings):
        for run in setting.runs:
            points = thinned(run.curve(phase, name), most)
            seed = f", seed {run.config.get(SEED)}" if len(setting.runs) > 1 else ""
            if points:
                yield {
                    "s": index,
                    "name": named(found, setting) + printable(seed),
                    "x": [rounded(x) for x, _ in points],
                    "y": [rounded(y) for _, y in points],
                }


def rounded(value: float) -> float:
    """Return a number with six digits: more are not seen, and make the page large."""
    return float(f"{value:.6g}")


def cost(found: Findings, plots: list[dict[str, Any]]) -> str:
    """Return the score against what it costs, "" where no run knows its cost."""
    points: list[dict[str, Any]] = []
    for index, setting in enumerate(found.settings):
        costs = {
            "parameters": setting.spread(lambda run: number(run.summary.get("parameters"))),
            "GFLOPs": setting.spread(gflops),
            "ms/image": setting.spread(latency),
            "images/s": setting.spread(lambda run: number(run.summary.get("images_per_second"))),
            "MiB": setting.spread(memory),
            "minutes": setting.spread(lambda run: number(run.summary.get("wall_seconds"))),
        }
        known = {name: rounded(value.mean) for name, value in costs.items() if value}
        if "minutes" in known:
            known["minutes"] = rounded(known["minutes"] / 60)
        score = setting.score
        if score is not None and known:
            deviation = score.deviation and rounded(score.deviation)
            points.append({"s": index, "y": rounded(score.mean), "sd": deviation, "x": known})
    names = [name for name in COSTS if len({p["x"].get(name) for p in points}) > 1]
    if not names:  # all cost the same, or nobody knows
        return ""
    metric = " / ".join(dict.fromkeys(setting.metric for setting in found.settings))
    title = f"best {metric}, mean and deviation over seeds"
    spec = {"kind": "cost", "title": printable(title), "y": printable(metric), "points": points}
    options = "".join(f"<option>{name}</option>" for name in names)
    tools = (
        f'<div class="tools"><label>cost <select id="cost-of">{options}</select></label></div>\n'
    )
    return f"{tools}{plot(plots, spec)}"


def by_image(found: Findings, plots: list[dict[str, Any]]) -> str:
    """Return the best setting beside the others on the same images, "" where no image is kept."""
    if not found.comparisons:
        return ""
    first = found.comparisons[0]
    rows = [
        {
            "evaluation": c.evaluation,
            "against": named(found, c.second),
            "images": len(c.images),
            "better on": int((c.changes > 0).sum()),
            "worse on": int((c.changes < 0).sum()),
            **{d.of: f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" for d in c.differences},
            "interval": "holds 0" if c.differences[0].holds_zero else "does not hold 0",
        }
        for c in found.comparisons
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    explained = (
        f"<p>{text(named(found, first.first))} minus each of the others, with 95 % intervals from "
        "10,000 paired draws of images. They say what other images would change, not what other "
        "seeds would.</p>\n"
    )
    most = float(np.abs(first.changes).max()) or 1.0  # all equal: one bar over 0
    counts, edges = np.histogram(first.changes, bins=31, range=(-most, most))
    against = f"{named(found, first.first)} minus {named(found, first.second)}"
    heading = text(f"{first.evaluation}: {against}")
    spec = {
        "kind": "histogram",
        "title": "each image's own score",
        "x": "difference",
        "y": "images",
        "at": [rounded(float(x)) for x in (edges[:-1] + edges[1:]) / 2],
        "counts": counts.tolist(),
    }
    changed = [
        {
            "image": first.images[i],
            "change": round(float(first.changes[i]), 4),
            named(found, first.first): round(float(first.scores[0][i]), 4),
            named(found, first.second): round(float(first.scores[1][i]), 4),
        }
        for i in first.most_changed()
    ]
    listed = ""
    if changed:
        listed = f"<h3>changed most ({text(first.evaluation)})</h3>\n" + table(
            "by-change", list(changed[0]), changed, ["<tr>"] * len(changed)
        )
    return (
        explained
        + table("by-image", columns, rows, ["<tr>"] * len(rows))
        + (
            f'<div class="grid"><div><h3>{heading}</h3>{plot(plots, spec)}</div>'
            f"<div>{listed}</div></div>\n"
        )
    )


# ---------------------------------------------------------------------- pictures


class Pictures:
    """Embed pictures until their bytes are spent."""

    def __init__(self) -> None:
        self.left = PICTURE_BYTES
        self.omitted = 0

    def figure(self, path: Path, caption: str, side: int = PICTURE_SIDE) -> str:
        """Return a picture with its caption; "" where none can be read, or no byte is left."""
        from segtrain.visualization.embedded import data_url

        if self.left <= 0:
            self.omitted += 1
            return ""
        try:
            url = data_url(path, side)
        except DataError:
            return f"<figure><figcaption>{text(caption)}: cannot be read</figcaption></figure>"
        self.left -= len(url)
        words = text(caption)
        return (
            f'<figure><img src="{url}" alt="{words}" decoding="async">'
            f"<figcaption>{words}</figcaption></figure>"
        )

    @property
    def note(self) -> str:
        """Return how many had to be left out."""
        if not self.omitted:
            return ""
        return f"<p>{self.omitted} more pictures are left out, so that a mail takes this page.</p>"


def pictures(found: Findings) -> str:
    """Return pictures of the best settings side by side, those that tell most first.

    They are the worst images of an evaluation, those that changed most at the front, its confusion
    matrices, and what the validation drew.
    """
    store = Pictures()
    best = found.settings[:PICTURE_SETTINGS]
    first = [(named(found, setting), setting.counted[0]) for setting in best]
    parts = worst_pictures(found, first, store)
    parts += confusion_pictures(found, first, store)
    drawn = [
        (words, file)
        for words, run in first
        for file in sorted((run.folder / "samples").rglob("*.png"))[:PICTURES]
    ]
    parts += side_by_side("drawn by the validation", drawn, store)
    shown_of = f"<p>of the best {len(best)} of {len(found.settings)} settings, a run of each</p>"
    above = shown_of if len(best) < len(found.settings) else ""
    return f"{above}{parts}{store.note}" if parts else ""


def side_by_side(title: str, files: Sequence[tuple[str, Path]], store: Pictures) -> str:
    """Return a row of pictures for each name of a file, one of each setting that has it."""
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for words, file in files:
        by_name.setdefault(RANK.sub("", file.stem), []).append((words, file))
    rows = ""
    for name, same in list(by_name.items())[: 2 * PICTURES]:
        figures = "".join(store.figure(file, words) for words, file in same)
        if figures:
            rows += f'<h4>{text(name)}</h4><div class="row">{figures}</div>\n'
    return f"<h3>{text(title)}</h3>\n{rows}" if rows else ""


def worst_pictures(found: Findings, runs: Sequence[tuple[str, Run]], store: Pictures) -> str:
    """Return the worst images of the first evaluation that has any.

    First come those that changed most against the next setting, then those that several settings
    have among their worst.
    """
    changed: list[str] = []
    if found.comparisons:
        comparison = found.comparisons[0]
        changed = [Path(comparison.images[i]).name for i in comparison.most_changed()]
    for name in evaluations(found.settings):
        files = [
            (words, file)
            for words, run in runs
            for file in sorted((run.folder / "eval" / name / "worst").glob("*.png"))
        ]
        shared = Counter(RANK.sub("", file.stem) for _, file in files)

        def order(pair: tuple[str, Path], shared: Counter[str] = shared) -> tuple[int, int]:
            image = RANK.sub("", pair[1].stem)
            place = changed.index(image) if image in changed else len(changed)
            return (place, -shared[image])

        if files:
            title = f"worst images of eval {name}, those that changed most first"
            return side_by_side(title, sorted(files, key=order), store)
    return ""


def confusion_pictures(found: Findings, runs: Sequence[tuple[str, Run]], store: Pictures) -> str:
    """Return the confusion matrices of the first evaluation that has any, side by side."""
    for name in evaluations(found.settings):
        files = [(words, run.folder / "eval" / name / "confusion.png") for words, run in runs]
        there = [(words, file) for words, file in files if file.is_file()][:MATRICES]
        if there:
            return side_by_side(f"confusion of eval {name}", there, store)
    return ""
