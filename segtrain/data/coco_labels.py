"""The classes of a COCO file, from its `categories` and from which of them its objects use.

An id may be any integer, or text. Roboflow lists a parent that no object has; it is no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.data.coco_read import Columns, read_columns
from segtrain.data.images import shown
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap, voc_color


@dataclass(frozen=True)
class Category:
    """An entry of `categories`: its number (`Ids`), the id as the file writes it, and the entry."""

    number: int
    raw: int | str
    entry: Mapping[str, Any]

    @property
    def name(self) -> Any:
        """Return its name; what is none is refused with the class list."""
        return self.entry.get("name")


def labels_of(path: Path, read: Columns) -> tuple[LabelMap, list[str]]:
    """Return the classes of a file in the order of their ids, and notes on what is none.

    `read` holds its annotations too. Errors: DataError.
    """
    categories = _categories(path, read)
    used = set(np.unique(np.asarray(read.object_categories)).tolist())
    try:
        kept, notes = _without_unused(path, categories, used)
        table = [
            {"id": train} | {key: each.entry[key] for key in ("name", "color") if key in each.entry}
            for train, each in enumerate(kept)
        ]
        labels = LabelMap.from_table(table, path.stem)
    except (UserError, TypeError) as error:
        raise _unreadable(path, error) from None
    labels = replace(labels, raw={each.raw: train for train, each in enumerate(kept)})
    if not any("color" in entry for entry in table):
        # There is no background, so no class is black.
        colors = tuple(voc_color(train + 1) for train in range(labels.num_classes))
        labels = replace(labels, colors=colors)
    return labels, notes


def read_labels(path: Path) -> LabelMap:
    """Return the classes of a file, in the order of their ids. Errors: DataError."""
    read = read_columns(path, ("categories",))
    categories = _categories(path, read)
    names = [each.name for each in categories]
    try:
        doubtful = len(set(names)) < len(names) or _parents(categories) & set(names)
    except TypeError as error:
        raise _unreadable(path, error) from None
    if doubtful:  # which of them are classes is told by the annotations
        read = read_columns(path, ("categories", "annotations"))
    return labels_of(path, read)[0]


def other_names(path: Path, read: Columns, labels: LabelMap) -> list[str]:
    """Return a line for each category that has another name here than in `labels`."""
    named = {}
    for entry in read.categories:
        number = read.known.number(entry.get("id")) if isinstance(entry, dict) else None
        named[number] = entry.get("name") if isinstance(entry, dict) else None
    pairs = [
        (raw, named[number], labels.names[train])
        for raw, train in labels.raw.items()
        if (number := read.known.number(raw)) in named
    ]
    way = "; dataset=coco_json takes the classes of the file" if labels.name == "coco" else ""
    return [
        f"{shown(path)}: category {raw} is `{here}`, but `{there}` in {labels.name}{way}"
        for raw, here, there in pairs
        if str(here).strip() != there
    ]


def _categories(path: Path, read: Columns) -> list[Category]:
    """Return the entries in the order of their ids. Errors: DataError."""
    found: dict[int, Category] = {}
    for entry in read.categories:
        value = entry.get("id") if isinstance(entry, dict) else None
        number = read.known.number(value)
        if number is None or value is None:
            raise _unreadable(path, "expected {id: 1, name: person}, ...")
        if number in found:
            raise _unreadable(path, f"id {value} is listed twice")
        raw = value if isinstance(value, str) else int(value)
        found[number] = Category(number, raw, entry)
    return sorted(found.values(), key=lambda each: read.known.order(each.number))


def _without_unused(
    path: Path, categories: list[Category], used: set[int]
) -> tuple[list[Category], list[str]]:
    """Leave out categories that no object has and another stands for, with a note for each.

    Those are a second one of one name, and one that is named as `supercategory` of others. Errors:
    DataError where objects have two categories of one name.
    """
    named: dict[Any, list[Category]] = {}
    for each in categories:
        named.setdefault(each.name, []).append(each)
    parents = _parents(categories) if used else set()
    kept = []
    notes = []
    for same in named.values():
        with_objects = [each for each in same if each.number in used]
        if len(with_objects) > 1:
            one, two = with_objects[:2]
            raise DataError(
                f"{shown(path)}: categories {one.raw} and {two.raw} are both named `{one.name}`, "
                "and annotations use both; give them names of their own, or one id"
            )
        chosen = with_objects or ([] if same[0].name in parents else same[:1])
        kept += chosen
        why = "another has its name" if chosen else "it is the `supercategory` of others"
        notes += [
            f"{shown(path)}: category {each.raw} `{each.name}` is no class: no annotation uses it, "
            f"and {why}"
            for each in same
            if each not in chosen
        ]
    return sorted(kept, key=categories.index), notes


def _parents(categories: list[Category]) -> set[Any]:
    """Return the names that stand as `supercategory` of another category."""
    pairs = {(each.entry.get("supercategory"), each.name) for each in categories}
    return {parent for parent, name in pairs if parent != name and parent is not None}


def _unreadable(path: Path, detail: object) -> DataError:
    said = "expected {id: 1, name: person}, ..." if isinstance(detail, TypeError) else detail
    return DataError(f"{shown(path)}: its `categories` cannot be read: {said}")
