"""`segtrain recipes`: the published recipes, with what they cost and how they are started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segtrain.commands.arguments import take
from segtrain.config import recipes, suggest
from segtrain.config.headers import EXPERIMENT_KEYS, Header, read_header
from segtrain.errors import UserError

TITLES = ("recipe", "paper", "ours", "steps", "batch", "GPUs", "command")


def run(words: Sequence[str]) -> None:
    """Print what `segtrain recipes [model=NAME] [dataset=NAME]` asks for. Errors: UserError."""
    taken, rest = take(words, "model", "dataset")
    if rest:
        raise UserError(f"{rest[0]}: segtrain recipes takes model=NAME and dataset=NAME")
    known = suggest.groups()
    for group, name in taken.items():
        if wrong := suggest.unknown_names([name], group, known):
            raise UserError(f"{group}={name}: {wrong}")
    rows = list(table(taken.get("model"), taken.get("dataset")))
    if not rows:
        asked = " ".join(f"{group}={name}" for group, name in taken.items())
        raise UserError(f"{asked}: no recipe was published for it; segtrain recipes lists them all")
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    for row in (TITLES, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def table(model: str | None, dataset: str | None) -> Iterator[tuple[str, ...]]:
    """Yield a row per recipe of a model and a data set; None stands for all of them."""
    own = {
        row.recipe: f"segtrain model={name} dataset={data}"
        for name, rows in recipes.RECIPES.items()
        for data, row in rows.items()
        if not row.without
    }
    nearest = recipes.RECIPES.get(model or "", {}).get(dataset or "")
    for name in recipes.names():
        header = read_header(recipes.FOLDER / f"{name}.yaml", EXPERIMENT_KEYS)
        chosen = header.chosen
        fits = model in (None, chosen["model"]) and dataset in (None, chosen["dataset"])
        near = nearest is not None and nearest.recipe == name
        if fits or near:
            command = f"segtrain model={model} dataset={dataset}" if near else own.get(name)
            yield _row(header, command or f"segtrain experiment={name}")


def _row(header: Header, command: str) -> tuple[str, ...]:
    train = header.body["train"]
    return (
        header.name,
        header.number,
        header["Ours"],
        f"{train['steps']:,}",
        str(train["batch_size"]),
        header["GPUs"].partition(" (")[0],
        command,
    )
