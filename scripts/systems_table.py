"""Make docs/systems.md, the published numbers, of the headers of conf/experiment and conf/ablation.

Run:  python scripts/systems_table.py            writes docs/systems.md
      python scripts/systems_table.py --check    ends with 1 where the page is out of date

A header is the comment at the top of a file: the package line, a title, then `# Key: text` in a
fixed order, with lines that go on further right. Experiments on CamVid are left out: their numbers
are ours and in docs/results/camvid.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from segtrain.config.headers import (
    ABLATION_KEYS,
    EXPERIMENT_KEYS,
    Header,
    read_header,
)
from segtrain.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "systems.md"
SYSTEMS = (
    "FCN",
    "ParseNet",
    "DeconvNet",
    "U-Net",
    "FPN",
    "PSPNet",
    "Mask R-CNN",
    "DeepLab",
    "DeepLabv3",
    "DeepLabv3+",
    "PANet",
    "EncNet",
)
BENCHMARKS = {
    "PASCAL VOC": ("voc", "voc_crops"),
    "PASCAL-Context": ("context",),
    "Cityscapes": ("cityscapes", "cityscapes_instance"),
    "COCO, COCO-Stuff": (
        "coco_voc",
        "coco_things",
        "coco_stuff",
        "coco_instance",
        "coco_proposal",
    ),
    "other": (),
}
FIRST = re.compile(r"\d+\.\d+")  # the number in a header's Paper
INTRODUCTION = """# Systems

The twelve systems, each published number with the recipe that stands for it. Start one with
`segtrain experiment=NAME`; `conf/experiment/NAME.yaml` says how to test it, under other protocols
too. `segtrain recipes` lists them with steps, batch and GPUs, and `segtrain model=NAME
dataset=NAME` starts the one of a model and a data set.

**The numbers are the papers' or the authors', not ours**; ours stand beside them once they are
measured.

This page is made by `scripts/systems_table.py` from the headers of `conf/experiment` and
`conf/ablation`: change those.
"""
OVERVIEW = """The highest published number of each system, on whatever split and with whatever
pre-training it was reached; the recipes below say which. U-Net's is an error, AR is of masks.
"""
ELSEWHERE = ("box_rpn_r50_coco",)  # AR of boxes is another measure than AR of masks
RECIPES = """- **paper**: what was published, for the protocol of the recipe; in brackets: other
  protocols and splits
- **split**: the images it was measured on, and those it was trained on
- **pre-training**: what the published weights had seen before; where it needs a file, and which
  one, is said in the recipe
- **GPUs**: what the published training ran on; a dash where no source says it
- **source**: where the number and the recipe come from, and what is ours
- **ours**: the same recipe, run here
"""


def experiments(folder: Path = ROOT / "conf" / "experiment") -> list[Header]:
    """Read the recipes of published numbers, by name. Errors: UserError."""
    paths = sorted(
        (path for path in folder.glob("*.yaml") if not path.stem.endswith("_camvid")), key=natural
    )
    return [read_header(path, EXPERIMENT_KEYS) for path in paths]


def ablations(folder: Path = ROOT / "conf" / "ablation") -> list[Header]:
    """Read the sweeps, by name. Errors: UserError."""
    return [read_header(path, ABLATION_KEYS) for path in sorted(folder.glob("*.yaml"))]


def natural(path: Path) -> str:
    """Return a name to sort by: fcn8s before fcn16s, r50 before r101."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(4), path.stem)


def benchmark(header: Header) -> str:
    """Return the column of an experiment, by the data it trains on."""
    dataset = header.chosen["dataset"]
    return next((name for name, known in BENCHMARKS.items() if dataset in known), "other")


def linked(header: Header, group: str) -> str:
    """Return the name of a recipe as a link to its file."""
    return f"[`{header.name}`](../conf/{group}/{header.name}.yaml)"


def row(cells: list[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(titles: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a table's lines."""
    yield row(titles)
    yield "|" + "---|" * len(titles)
    yield from (row(cells) for cells in rows)


def best(headers: list[Header]) -> str:
    """Return the highest number among the recipes of a cell, as a link to its file; "" for none."""
    numbered = [h for h in headers if FIRST.search(h.number) and h.name not in ELSEWHERE]
    if not numbered:
        return ""
    header = max(numbered, key=lambda header: float(FIRST.search(header.number)[0]))
    number = header.number.partition(",")[0]
    return f"[{number}](../conf/experiment/{header.name}.yaml)"


def overview(headers: list[Header]) -> Iterator[str]:
    """Yield a row per system, with a column per benchmark."""
    unknown = {header.parts[0] for header in headers} - set(SYSTEMS)
    if unknown:
        raise UserError(
            f"{', '.join(sorted(unknown))}: no system of this page, which has {', '.join(SYSTEMS)}"
        )
    rows = []
    for system in SYSTEMS:
        own = [header for header in headers if header.parts[0] == system]
        held = {
            name: best([header for header in own if benchmark(header) == name])
            for name in BENCHMARKS
        }
        rows.append([f"[{system}](#{anchor(system)})", *held.values()])
    yield from table(["system", *BENCHMARKS], rows)


def anchor(system: str) -> str:
    """Return what a link to a system's heading is called, as GitHub makes it.

    The second of a kind ends in -1: that is DeepLabv3+, whose plus is dropped.
    """
    plain = [re.sub(r"[^a-z0-9-]", "", name.lower().replace(" ", "-")) for name in SYSTEMS]
    index = SYSTEMS.index(system)
    before = plain[:index].count(plain[index])
    return f"{plain[index]}-{before}" if before else plain[index]


def details(headers: list[Header]) -> Iterator[str]:
    """Yield a section per system."""
    for system in SYSTEMS:
        own = [header for header in headers if header.parts[0] == system]
        if not own:
            continue
        yield from (f"### {system}", "", f"{own[0].parts[1]}.", "")
        rows = [[linked(h, "experiment"), h.parts[2], h["Paper"], h["Ours"]] for h in own]
        yield from table(["experiment", "what", "paper", "ours"], rows)
        yield ""
        for header in own:
            yield f"- `{header.name}`"
            yield f"  - split: {header['Split']}"
            yield f"  - pre-training: {header['Weights']}"
            yield f"  - GPUs: {header['GPUs']}"
            yield f"  - source: {header['Source']}"
        yield ""


def swept(headers: list[Header]) -> Iterator[str]:
    """Yield the sweeps: command, what is swept, the paper's row in the order of the sweep."""
    rows = []
    for header in headers:
        params = header.body["hydra"]["sweeper"]["params"]
        values = "<br>".join(f"`{key}`: {value}" for key, value in params.items())
        command = header.commands("Run")[0][0]
        facts = [header[key] for key in ("Paper", "Split", "Weights", "Source", "Ours")]
        rows.append([linked(header, "ablation"), f"`{command}`", values, *facts])
    titles = ["ablation", "command", "values, the first key outermost"]
    yield from table(
        [*titles, "paper, in this order", "split", "pre-training", "source", "ours"], rows
    )


def page() -> str:
    """Return the whole page. Errors: UserError."""
    headers = experiments()
    lines = [
        INTRODUCTION,
        "## Overview",
        "",
        OVERVIEW,
        *overview(headers),
        "",
        "## Recipes",
        "",
        RECIPES,
        *details(headers),
        "## Ablations",
        "",
    ]
    lines += [
        "Sweeps over what a paper varies: one run per combination. "
        "They start with `segtrain -m ablation=NAME`.",
        "",
    ]
    return "\n".join([*lines, *swept(ablations()), ""])


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or compare it; 0 where all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; end with 1 where the page is out of date",
    )
    asked = parser.parse_args(arguments)
    try:
        text = page()
    except UserError as error:
        print(f"systems_table: {error}", file=sys.stderr)
        return 1
    if asked.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE}: out of date; run python scripts/systems_table.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
