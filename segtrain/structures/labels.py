"""One declarative table per data set: raw mask value -> train id -> name -> colour.

Everything uses it. Raw masks are (H, W) integers of any legal raw value; train masks are (H, W)
uint8 with 0 .. K - 1 and IGNORE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from segtrain.errors import DataError, UserError, check_names, did_you_mean
from segtrain.structures.samples import IGNORE

# Marks unlisted values in the lookup table, so a label map holds at most 254 classes (0 .. 253).
ILLEGAL = 254
RAW_VALUES = 65536  # masks are 8 or 16 bit
BUILT_IN = Path(__file__).parent / "classes"
ENTRY_KEYS = ("id", "name", "color", "ignore")
MAX_COLORS_SHOWN = 300  # characters of a list of colours in a message
# Of a mask of 0 and 255 with soft edges; a mask of more classes has hardly any 255. By hand.
HARD_SHARE = 0.5
# From here on the largest of two or three values of a mask stands for white. Chosen by hand: half
# of a byte, above the numbers of most classes.
LEAST_WHITE = 128
MAX_VALUES_SHOWN = 100  # characters of a list of values in a message, before it is shortened


# A value of a mask, or an id of COCO's `categories`, which may be any integer, or text.
RawId = int | str
# Classes as a person writes them down, see `LabelMap.from_table`.
Table = Sequence[Mapping[str, Any] | str] | Mapping[int, str | None]


def voc_color(index: int) -> tuple[int, int, int]:
    """Return the colour (R, G, B) of a class by the VOC rule.

    Bits 3j, 3j+1, 3j+2 of `index` are bit 7-j of R, G, B.
    """
    channels = [sum(((index >> (3 * j + c)) & 1) << (7 - j) for j in range(8)) for c in range(3)]
    return channels[0], channels[1], channels[2]


def spans(values: Sequence[int]) -> str:
    """Return integers as short text in ascending order: [0, 1, 2, 5] -> '0-2, 5'."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _shortened(values: Sequence[RawId]) -> str:
    numbers = [value for value in values if isinstance(value, int)]
    texts = [value for value in values if isinstance(value, str)]
    text = ", ".join(([spans(numbers)] if numbers else []) + texts)
    if len(text) <= MAX_VALUES_SHOWN:
        return text
    if texts:
        return f"{text[: MAX_VALUES_SHOWN - 3]}... ({len(values)} values)"
    return f"{min(numbers)}-{max(numbers)} ({len(values)} values)"


@dataclass(frozen=True)
class LabelMap:
    """Hold the K classes of a data set: `names[t]` and `colors[t]` belong to train id t.

    `raw` maps every legal value of a mask, or id of a category, to a train id or IGNORE;
    `void_colors` are those of ignored pixels in masks that are drawn in colours. Errors: UserError
    for a name with control characters.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    raw: dict[RawId, int]
    void_colors: tuple[tuple[int, int, int], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check_names("class name", self.names)  # they stand in logs, tables and pictures

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes that train and count."""
        return len(self.names)

    @property
    def mask_values(self) -> dict[int, int]:
        """Return of `raw` what a mask can hold, which not every id of a category is."""
        return {
            raw: train
            for raw, train in self.raw.items()
            if isinstance(raw, int) and 0 <= raw < RAW_VALUES
        }

    @cached_property
    def _to_train(self) -> np.ndarray:
        table = np.full(RAW_VALUES, ILLEGAL, np.uint8)
        for raw, train in self.mask_values.items():
            table[raw] = train
        return table

    @cached_property
    def _to_raw(self) -> np.ndarray:
        """Return (256,) the raw value of each train id, the first listed one.

        IGNORE gets the first ignored value, else 255.
        """
        first: dict[int, int] = {}
        for raw, train in self.mask_values.items():
            first.setdefault(train, raw)
        dtype = np.uint16 if max(first.values(), default=0) > 255 else np.uint8
        table = np.full(256, first.get(IGNORE, IGNORE), dtype)
        for train, raw in first.items():
            table[train] = raw
        return table

    def encode(self, raw_mask: np.ndarray, where: str, hint: str = "") -> np.ndarray:
        """Return the train ids (H, W) uint8 of a raw mask (H, W).

        Errors: DataError that names `where`, the first illegal pixel and the way out. `hint` is the
        way out that the data set knows; without it there is a general one.
        """
        mask = raw_mask
        if mask.dtype not in (np.uint8, np.uint16):
            outside = (mask < 0) | (mask >= RAW_VALUES)
            if outside.any():
                raise self._illegal(mask, outside, where, hint)
            mask = mask.astype(np.uint16)
        # Nothing is clipped, as the table covers the whole dtype, but numpy then checks nothing.
        train = self._to_train.take(mask, mode="clip")
        illegal = train == ILLEGAL
        if illegal.any():
            raise self._illegal(mask, illegal, where, hint)
        return train

    def encode_colors(self, drawn: np.ndarray, where: str) -> np.ndarray:
        """Return the train ids (H, W) uint8 of a mask that is drawn in `colors` (H, W, 3) uint8.

        Errors: DataError naming `where`, the first pixel of another colour, and the colours there
        are.
        """
        codes = np.array([_code(color) for color in (*self.colors, *self.void_colors)])
        train = np.full(len(codes), IGNORE, np.uint8)
        train[: self.num_classes] = range(self.num_classes)
        values = drawn.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        order = np.argsort(codes, kind="stable")  # of one colour twice the class comes first
        place = np.minimum(np.searchsorted(codes[order], values), len(codes) - 1)
        unknown = codes[order][place] != values
        if unknown.any():
            y, x = np.unravel_index(int(unknown.argmax()), unknown.shape)
            listed = ", ".join(
                f"{name} {list(color)}" for name, color in zip(self.names, self.colors, strict=True)
            )
            raise DataError(
                f"{where}: colour {drawn[y, x].tolist()} at (x={x}, y={y}) is of no class; "
                f"{self.name} has {listed[:MAX_COLORS_SHOWN]}"
            )
        return train[order[place]]

    def check_colors(self, where: str) -> None:
        """Refuse two classes of one colour, which no mask in colours tells apart. UserError."""
        first: dict[tuple[int, int, int], str] = {}
        for name, color in zip(self.names, self.colors, strict=True):
            other = first.setdefault(color, name)
            if other != name:
                raise UserError(
                    f"{where}: the classes `{other}` and `{name}` have the same colour "
                    f"{list(color)}; give each its `color`, those without one have VOC's"
                )

    def decode(self, train: np.ndarray) -> np.ndarray:
        """Return the raw values (H, W) of train ids (H, W), as the benchmark's own files hold them.

        They are uint8 where they fit. Errors: UserError for a train id that is no class.
        """
        unknown = train >= self.num_classes
        # Otherwise 255 would be read as the class of that value.
        if IGNORE in self.raw.values() or IGNORE not in self.raw:
            unknown &= train != IGNORE
        if unknown.any():
            raise UserError(
                f"class {int(train[unknown][0])} predicted, but {self.name} has {self.legal()}"
            )
        return self._to_raw[train]

    def legal(self) -> str:
        """Return the legal raw values in words: 'classes 0-20 and 255 for ignored'."""
        classes = _shortened([raw for raw, train in self.raw.items() if train != IGNORE])
        ignored = _shortened([raw for raw, train in self.raw.items() if train == IGNORE])
        return f"classes {classes}" + (f" and {ignored} for ignored" if ignored else "")

    def without(self, name: str) -> LabelMap:
        """Return the map with class `name` ignored; the train ids behind it move down by one."""
        if name not in self.names:
            raise UserError(f"{self.name} has no class `{name}`.{did_you_mean(name, self.names)}")
        return self.only([other for other in self.names if other != name])

    def only(self, names: Sequence[str]) -> LabelMap:
        """Return the map with the classes `names` numbered 0, 1, ... and the others ignored.

        The classes stay in their old order.
        """
        keep = [t for t, name in enumerate(self.names) if name in names]
        moved = {raw: keep.index(train) for raw, train in self.raw.items() if train in keep}
        # Ignored pixels are written as the first ignored value, here the lowest.
        moved |= dict.fromkeys(sorted(raw for raw in self.raw if raw not in moved), IGNORE)
        return replace(
            self,
            names=tuple(self.names[t] for t in keep),
            colors=tuple(self.colors[t] for t in keep),
            raw=moved,
            void_colors=(
                *self.void_colors,
                *(color for t, color in enumerate(self.colors) if t not in keep),
            ),
        )

    def in_order(self, names: Sequence[str]) -> LabelMap:
        """Return the map with its classes numbered in the order of `names`, which are all of them.

        Raw values, and which of several of a class is written, stay.
        """
        train = {name: index for index, name in enumerate(names)}
        return replace(
            self,
            names=tuple(names),
            colors=tuple(self.colors[self.names.index(name)] for name in names),
            raw={
                raw: old if old == IGNORE else train[self.names[old]]
                for raw, old in self.raw.items()
            },
        )

    def contiguous(self) -> LabelMap:
        """Return the map of masks that hold train ids already: t -> t and 255 -> IGNORE."""
        return replace(self, raw={t: t for t in range(self.num_classes)} | {IGNORE: IGNORE})

    def _illegal(self, mask: np.ndarray, illegal: np.ndarray, where: str, hint: str) -> DataError:
        y, x = np.unravel_index(int(illegal.argmax()), illegal.shape)
        value = int(mask[y, x])
        message = (
            f"{where}: mask value {value} at (x={x}, y={y}), but {self.name} has {self.legal()}. "
        )
        return DataError(message + (hint or self._way_out(mask, value)))

    def _way_out(self, mask: np.ndarray, value: int) -> str:
        present = set(np.unique(mask).tolist())
        white = max(present)
        if present <= {0, white} and white >= LEAST_WHITE:
            return binary_hint(white)
        if value == IGNORE and present - set(self.raw) == {IGNORE}:
            return (
                f"{IGNORE} mostly stands for ignored pixels: add `{IGNORE}: null` to "
                "dataset.labels, or name its class"
            )
        if 0 in present and len(present) == 3 and white >= LEAST_WHITE:
            return (
                f"A mask of the three values {spans(list(present))}, as of object, border and "
                "background? Say what each is: dataset=folder 'dataset.labels={"
                + ", ".join(f"{value}: ..." for value in sorted(present))
                + "}' (null: ignored)"
            )
        whole = {0, white} <= present and white in (255, 65535)
        if whole and np.isin(mask, (0, white)).mean() >= HARD_SHARE:
            return (
                f"A 0/{white} mask with soft edges, as smoothing or JPEG make them? Save it again "
                f"with every value below {(white + 1) // 2} as 0 and the others as {white}. "
                f"{binary_hint(white)}"
            )
        if set(self.raw) <= {0, 1, IGNORE} and present == set(range(len(present))):
            return (
                f"Objects numbered 1 to {white}? dataset=instance_maps_semantic reads them as one "
                "class, dataset=instance_maps as objects"
            )
        by_train_ids = set(self.raw) - {IGNORE} == set(range(19))  # Cityscapes has 19 classes
        if by_train_ids and present <= set(range(34)):
            return (
                "Raw Cityscapes labelIds? dataset=cityscapes reads them, and dataset=folder "
                "dataset.classes=cityscapes"
            )
        return (
            "Other labels? dataset=folder takes them: "
            f"dataset.labels=[{{id: {value}, name: ...}}, ...]"
        )

    @classmethod
    def from_table(cls, table: Table, name: str) -> Self:
        """Return the map of entries {id, name, color?, ignore?} in the order of the train ids.

        In short it is a list of names, whose places are the ids, or a mapping {id: name}, in which
        null stands for ignored. Ids that share a name are one class; names that differ only in case
        are refused, and spaces around them left away. `ignore: true` marks values
        that neither train nor count (no name needed). Nothing is ignored unless listed. Errors:
        UserError.
        """
        raw: dict[RawId, int] = {}
        colors: dict[str, tuple[int, int, int] | None] = {}
        voids: list[tuple[int, int, int]] = []
        for number, entry in enumerate(_entries(table, name)):
            where = f"{name}, label entry {number}"
            key = _raw_id(entry, raw, where)
            if entry.get("ignore", False):
                raw[key] = IGNORE
                voids += [color] if (color := _color(entry, where)) else []
                continue
            label = entry.get("name")
            color = _color(entry, where)
            label = label.strip() if isinstance(label, str) else label
            if not isinstance(label, str) or not label:
                raise UserError(f"{where}: id {key} needs a `name` (text) or `ignore: true`")
            if color and colors.get(label) not in (None, color):
                raise UserError(
                    f"{where}: class `{label}` has two colours, {colors[label]} and {color}"
                )
            colors[label] = colors.get(label) or color
            raw[key] = list(colors).index(label)
        _check_spelling(colors, name)
        if not 1 <= len(colors) <= ILLEGAL:
            raise UserError(
                f"{name}: {len(colors)} classes listed; a label map holds 1 to {ILLEGAL}"
            )
        return cls(
            name,
            tuple(colors),
            tuple(c or voc_color(t) for t, c in enumerate(colors.values())),
            raw,
            tuple(voids),
        )

    @classmethod
    def load(cls, source: str, key: str = "id") -> Self:
        """Return a built-in map by name ("voc"), or that of a .json file of the same form.

        A .txt file is read by `read_list`. The form is that of classes/voc.json; `train` may be
        absent. `key` names the number that masks hold, where the file lists several numberings
        (classes/context.json). Errors: UserError, DataError.
        """
        kind = Path(source).suffix.lower()
        if kind == ".txt":
            return cls.from_table(read_list(Path(source)), Path(source).stem)
        path = Path(source) if kind == ".json" else BUILT_IN / f"{source}.json"
        if kind != ".json" and not path.is_file():
            if Path(source).is_file():
                raise UserError(
                    f"{source}: a class list is a .json file, or a .txt file of a name a line"
                )
            known = sorted(p.stem for p in BUILT_IN.glob("*.json"))
            hint = did_you_mean(source, known)
            raise UserError(
                f"no label map `{source}`; built in: {', '.join(known)}, "
                f"or give a .json or .txt file.{hint}"
            )
        content = _read_json(path)
        entries = sorted(_entries(content["classes"], str(path)), key=_train_id)
        ignored = [{"id": raw, "ignore": True} for raw in content.get("ignored", [])]
        table = [_entry(entry, key) for entry in entries] + ignored
        labels = cls.from_table(table, str(content.get("name", path.stem)))
        for entry in entries:
            if entry.get("train") not in (None, labels.raw[entry[key]]):
                raise UserError(
                    f"{path}: id {entry[key]} has train id {entry['train']}; "
                    "they must run 0, 1, 2, ... by name"
                )
        return labels

    def record(self) -> dict[str, Any]:
        """Return the map as plain types, for a checkpoint."""
        return {
            "name": self.name,
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "raw": [list(pair) for pair in self.raw.items()],
        }

    @classmethod
    def from_record(cls, record: Any, where: str) -> Self:
        """Return the map that `record` wrote. Errors: UserError naming `where` if it is damaged."""
        try:
            names = tuple(str(name) for name in record["names"])
            colors = tuple((int(r), int(g), int(b)) for r, g, b in record["colors"])
            raw = {
                raw if isinstance(raw, str) else int(raw): int(train)
                for raw, train in record["raw"]
            }
            return cls(str(record["name"]), names, colors, raw)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: its class table is damaged ({error!r})") from None


def _entries(table: Table, where: str) -> list[Any]:
    """Return a table in its long form. Errors: UserError for what is none."""
    pairs: list[tuple[int, Any]] = []
    good = isinstance(table, Mapping | Sequence) and not isinstance(table, str)
    if isinstance(table, Mapping):
        try:
            pairs = [(int(key), name) for key, name in table.items()]
        except (TypeError, ValueError):
            good = False
        good = good and not any(isinstance(key, float) for key in table)  # int would cut it off
    if not good:
        held = str(dict(table) if isinstance(table, Mapping) else table)
        raise UserError(
            f"{where}: {held:.80} is no class list; write [background, car], "
            "{0: background, 1: car} or [{id: 0, name: background}, ...]"
        )
    if isinstance(table, Mapping):
        return [
            {"id": key, "ignore": True} if name is None else {"id": key, "name": name}
            for key, name in pairs
        ]
    names = [name.strip() for name in table if isinstance(name, str)]
    if names and len(names) == len(table):
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise UserError(
                f"{where}: `{twice}` is listed twice; ids of one class are written "
                f"{{{names.index(twice)}: {twice}, {len(names) - 1}: {twice}, ...}}"
            )
        return [{"id": place, "name": name} for place, name in enumerate(names)]
    return list(table)


def _check_spelling(names: Iterable[str], where: str) -> None:
    """Refuse two classes whose names differ only in case or spaces. Errors: UserError."""
    spelled: dict[str, str] = {}
    for name in names:
        first = spelled.setdefault(" ".join(name.split()).casefold(), name)
        if first != name:
            raise UserError(
                f"{where}: the classes `{first}` and `{name}` differ only in case or spaces; write "
                "them alike where they are one class, else give one another name"
            )


def read_list(path: Path) -> Table:
    """Return the table of a .txt file: a name a line, whose places are the ids, or `7: name`.

    Without the colon numbers are ids only where they count up by one: else they belong to the
    names, as in `5 cent`. Errors: UserError, DataError.
    """
    names = [line.strip() for line in _text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(f"{path}, line {names.index('') + 1}: is empty; every line names a class")
    for number, name in enumerate(names, 1):
        if len(re.findall(r"\b\d+\b", name)) >= 3:
            raise DataError(
                f"{path}, line {number}: holds a colour, but a line is a name; write colours in a "
                ".json file"
            )
    found = [re.fullmatch(r"(\d+)\s*([:,;\s])\s*(.+)", name) for name in names]
    pairs = [match for match in found if match]
    numbers = [int(match[1]) for match in pairs]
    if len(pairs) != len(names) or not (
        numbers == [numbers[0] + place for place in range(len(names))]
        or all(match[2] == ":" for match in pairs)
    ):
        return names
    if len(set(numbers)) != len(numbers):
        raise DataError(f"{path}: lists a number twice")
    return {number: match[3] for number, match in zip(numbers, pairs, strict=True)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: label file: {error.strerror}; set dataset.classes=FILE.json"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}); save it as UTF-8") from error


def _code(color: tuple[int, int, int]) -> int:
    """Return a colour as one number, 0xRRGGBB."""
    return color[0] << 16 | color[1] << 8 | color[2]


def binary_hint(white: int = 255) -> str:
    """Return what to do with masks that hold only 0 and `white`."""
    return (
        f"Binary 0/{white} masks? Map {white} to a class: dataset=folder "
        f"'dataset.labels=[{{id: 0, name: background}}, {{id: {white}, name: object}}]'"
    )


def _raw_id(entry: Mapping[str, Any], seen: Mapping[RawId, int], where: str) -> int:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: `{entry}` is not a table; write {{id: 1, name: car}}")
    for key in entry:
        if key not in ENTRY_KEYS:
            raise UserError(
                f"{where}: unknown key `{key}`; use id, name, color, ignore."
                f"{did_you_mean(key, ENTRY_KEYS)}"
            )
    value = entry.get("id")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < RAW_VALUES:
        raise UserError(
            f"{where}: `id` is {value!r}, but a mask value is an integer from 0 to {RAW_VALUES - 1}"
        )
    if value in seen:
        raise UserError(f"{where}: id {value} is listed twice")
    return value


def _color(entry: Mapping[str, Any], where: str) -> tuple[int, int, int] | None:
    color = entry.get("color")
    if color is None:
        return None
    good = isinstance(color, list | tuple) and len(color) == 3
    if not good or not all(type(c) is int and 0 <= c <= 255 for c in color):
        raise UserError(
            f"{where}: `color` is {color!r}, but a colour is [r, g, b] with integers from 0 to 255"
        )
    return color[0], color[1], color[2]


def _train_id(item: Mapping[str, Any]) -> int:
    """Return what an entry of a file is sorted by: its train id; those without one come last."""
    train = item.get("train")
    return train if isinstance(train, int) else IGNORE


def _entry(item: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Return an entry of a file as `from_table` takes it; `number` names its key of the id."""
    entry = {key: item[key] for key in ENTRY_KEYS if key in item}
    entry["id"] = item.get(number)
    if "train" in item and item["train"] is None:
        entry["ignore"] = True
    return entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error
    classes = content.get("classes") if isinstance(content, dict) else None
    good = isinstance(classes, list) and all(isinstance(c, dict | str) for c in classes)
    if not good or not isinstance(content.get("ignored", []), list):
        raise DataError(
            f'{path}: expected {{"classes": [{{"id": 0, "name": "road"}}, ...], "ignored": [255]}}'
        )
    return content
