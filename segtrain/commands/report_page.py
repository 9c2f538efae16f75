"""The HTML page of `segreport`: tables, curves and pictures."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from segtrain.commands.report_runs import Run
from segtrain.commands.report_table import Row, class_table, shown

MAX_POINTS = 400  # of one curve
MAX_PICTURES = 4  # of one run
PLOT_WIDTH = 640  # pixels
PLOT_HEIGHT = 240  # pixels
PLOT_MARGIN = 40  # pixels on each side, for the numbers of the axes
STYLE = """<style>
body { font: 14px sans-serif; margin: 2em }
td, th { padding: 2px 10px; text-align: left }
figure { display: inline-block; margin: 1em }
</style>"""


def color(index: int) -> str:
    """Return the colour of one run. Steps of the golden angle keep any number of them apart."""
    return f"hsl({index * 137.5 % 360:.0f} 65% 45%)"


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS of a curve, the last one always among them."""
    stride = -(-len(points) // MAX_POINTS)
    return points[::-1][::stride][::-1] if points else []


def plot(title: str, curves: Sequence[list[tuple[float, float]]]) -> str:
    """Return one SVG with a line per run, or "" when no run has a point.

    The ends of both axes are written beside them.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        return ""
    right = max(x for x, _ in points) or 1
    low = min(y for _, y in points)
    high = max(y for _, y in points)
    span = (high - low) or 1

    def point_in_svg(x: float, y: float) -> str:
        down = PLOT_HEIGHT - PLOT_MARGIN - (y - low) / span * (PLOT_HEIGHT - 2 * PLOT_MARGIN)
        return f"{PLOT_MARGIN + x / right * (PLOT_WIDTH - 2 * PLOT_MARGIN):.1f},{down:.1f}"

    paths = [" ".join(point_in_svg(x, y) for x, y in thinned(curve)) for curve in curves]
    lines = [
        f'<polyline fill="none" stroke="{color(i)}" points="{path}"/>'
        for i, path in enumerate(paths)
        if path
    ]
    bottom = PLOT_HEIGHT - PLOT_MARGIN
    outline = f"M{PLOT_MARGIN},{PLOT_MARGIN}V{bottom}H{PLOT_WIDTH - PLOT_MARGIN}"
    frame = f'<path d="{outline}" fill="none" stroke="#888"/>'
    labels = [
        (4, PLOT_MARGIN - 6, f"{high:.4g}"),
        (4, bottom + 14, f"{low:.4g}"),
        (PLOT_WIDTH - 2 * PLOT_MARGIN, bottom + 14, f"step {right:g}"),
    ]
    texts = [f'<text x="{x}" y="{y}" font-size="11">{text}</text>' for x, y, text in labels]
    size = f'width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}"'
    drawing = f"<svg {size}>{frame}{''.join(lines + texts)}</svg>"
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{drawing}</figure>\n"


def pictures(run: Run, out: Path) -> str:
    """Return the run's overlays as links relative to the report."""
    files = sorted((run.folder / "samples").rglob("*.png"))[:MAX_PICTURES]
    links = [
        quote(Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()) for file in files
    ]
    images = "".join(
        f'<a href="{link}"><img src="{link}" loading="lazy" height="160"></a>' for link in links
    )
    return f"<h2>{html.escape(run.name)}</h2><p>{images}</p>\n" if images else ""


def plots(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a plot of training loss, of validation loss and of every monitored scalar."""
    yield plot("training loss", [run.curve("train", "loss") for run in runs])
    yield plot("validation loss", [run.curve("val", "loss") for run in runs])
    for metric in dict.fromkeys(run.metric for run in runs):
        yield plot(f"validation {metric}", [run.curve("val", metric) for run in runs])


def page(runs: Sequence[Run], rows: Sequence[Row], columns: Sequence[str], out: Path) -> str:
    """Return the page. It shows nothing from outside but the runs' own pictures."""

    def line(cells: Iterable[str], tag: str, style: str = "") -> str:
        return (
            f"<tr{style}>"
            + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            + "</tr>\n"
        )

    body = [
        line([shown(c, r.get(c)) for c in columns], "td", f' style="color:{color(i)}"')
        for i, r in enumerate(rows)
    ]
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    classes = class_table(runs)
    table = "".join(line(cells, "td" if index else "th") for index, cells in enumerate(classes))
    by_class = (
        f"<details><summary>by class, in percent</summary><table>\n{table}</table></details>\n"
        * bool(classes)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title>{STYLE}</head>\n"
        f"<body><h1>{title}</h1>\n<table>\n{line(columns, 'th')}{''.join(body)}</table>\n{by_class}"
        f"{''.join(plots(runs))}{''.join(pictures(run, out) for run in runs)}</body></html>\n"
    )
