"""Bounds: of configs from elsewhere, before anything is expanded, and of each number in them.

A few hundred bytes of YAML can stand for gigabytes: aliases of aliases, interpolations of
interpolations, nesting without end. What is larger than any config of a person is refused. So is a
number that nobody means: it would crash, never end, or train upwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from segtrain.errors import UserError

# A config that a person wrote stays far below all of them; one made to exhaust memory does not.
MAX_BYTES = 256 << 10  # of a file
MAX_DEPTH = 64  # nested mappings and lists
MAX_VALUES = 100_000  # mappings, lists and values together, aliases counted as often as they stand
MAX_REFERENCES = 100  # interpolations in one text
MAX_CHARACTERS = 1_000_000  # of all texts together, once their interpolations are filled in

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_FILLED = "\0"  # stands for an interpolation that was looked at
_TAKE_VALUES = ("oc.env", "oc.decode")  # resolvers that take a value, not a key
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")


def bounded_text(path: Path) -> str:
    """Return the text of a YAML file that stands for no more than a person's config.

    Errors: OSError; UserError naming the file. What is no YAML at all is left to who parses it.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES >> 10} KiB, so it is no config")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8 (byte {error.start})") from None
    refuse_endless_text(text, str(path))
    return text


def refuse_endless_text(text: str, where: str) -> None:
    """Refuse YAML whose aliases stand for too much. Errors: UserError naming `where`."""
    anchors: dict[str, tuple[int, int]] = {}  # name -> (values, depth) of what it stands for
    opened: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # (anchor, values, depth inside)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, 1, 0))
                _check(where, 0, len(opened))
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, values, depth = opened.pop()
            elif isinstance(event, yaml.ScalarEvent):
                refuse_many_references(where, event.value)
                anchor = event.anchor
                values = 1
                depth = 0
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:  # unknown, or a collection inside itself
                    raise UserError(f"{where}: the alias *{event.anchor} stands for nothing whole")
                anchor = None
                values, depth = anchors[event.anchor]
            else:
                continue
            if anchor is not None:
                anchors[anchor] = (values, depth)
            outer, total, deepest = opened[-1]
            opened[-1] = (outer, total + values, max(deepest, depth + 1))
            _check(where, total + values, len(opened) + depth)
    except yaml.YAMLError:
        return  # whoever parses the file says what is wrong, and where


def refuse_endless(plain: Mapping[str, Any], where: str) -> None:
    """Refuse plain types that have no end, or hold more than any config. Errors: UserError."""
    left: list[tuple[object, int]] = [(plain, 1)]
    count = 0
    while left:
        node, depth = left.pop()
        count += 1
        _check(where, count, depth)
        if isinstance(node, Mapping):
            if strange := [key for key in node if not isinstance(key, str | int | float | None)]:
                raise UserError(f"{where}: a key of type {type(strange[0]).__name__}")
            left += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list | tuple):
            left += [(value, depth + 1) for value in node]


def _check(where: str, values: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UserError(f"{where}: nested too deeply")
    if values > MAX_VALUES:
        raise UserError(f"{where}: holds more than {MAX_VALUES:,} values")


def refuse_many_references(where: str, text: str) -> None:
    """Refuse a text whose interpolations take long to read, before anybody reads them."""
    if text.count("${") > MAX_REFERENCES:
        raise UserError(f"{where}: a text of more than {MAX_REFERENCES} interpolations")


def refuse_endless_references(plain: Mapping[str, Any], where: str) -> None:
    """Refuse texts whose interpolations, filled in, make more than any config.

    `plain` are the plain types of a config with its interpolations as text. Errors: UserError.
    """
    sizes: dict[tuple[str, ...], int] = {}  # by path; 0 while it is being counted: a cycle

    def size(path: tuple[str, ...], node: Any) -> int:
        if path in sizes:
            return sizes[path]
        sizes[path] = 0
        if len(path) > MAX_DEPTH or len(sizes) > MAX_VALUES:
            raise UserError(f"{where}: nested too deeply")
        if isinstance(node, Mapping):
            total = sum(size((*path, str(key)), value) for key, value in node.items())
        elif isinstance(node, list | tuple):
            total = sum(size((*path, str(index)), value) for index, value in enumerate(node))
        elif isinstance(node, str):
            named = _references(path, node, where)
            total = len(node) + sum(size(to, _at(plain, to)) for to in named)
        else:
            total = 1
        if total > MAX_CHARACTERS:
            raise UserError(
                f"{where}: {'.'.join(path) or 'it'} would hold more than {MAX_CHARACTERS:,} "
                "characters once its interpolations are filled in"
            )
        sizes[path] = total
        return total

    try:
        size((), plain)
    except RecursionError:
        raise UserError(f"{where}: its interpolations refer to each other too deeply") from None


def _references(path: tuple[str, ...], text: str, where: str) -> list[tuple[str, ...]]:
    """Return the paths that the interpolations of `text`, which stands at `path`, name.

    Those inside resolvers are among them, as `${oc.select:a.b}` reads a value too.
    """
    named: list[tuple[str, ...]] = []
    refuse_many_references(f"{where}: {'.'.join(path)}", text)
    while match := _INNERMOST.search(text):
        resolver, _, body = match[1].rpartition(":")
        if _FILLED in match[1] and resolver.strip() not in _TAKE_VALUES:
            raise UserError(
                f"{where}: {'.'.join(path)} makes a key out of an interpolation; name the key"
            )
        for key in body.split(","):
            words = key.strip().replace("[", ".").replace("]", "")
            up = len(words) - len(words.lstrip("."))
            base = path[: len(path) - up] if up else ()
            named.append((*base, *filter(None, words.lstrip(".").split("."))))
        text = text.replace(match[0], _FILLED, 1)
    return named


def _at(plain: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path, None where there is none."""
    for word in path:
        if isinstance(plain, Mapping):
            plain = plain.get(word)
        elif isinstance(plain, list | tuple) and word.isdecimal() and int(word) < len(plain):
            plain = plain[int(word)]
        else:
            return None
    return plain


class Range(NamedTuple):
    """The least and the largest value of a setting."""

    low: float
    high: float


# The upper ends are chosen by hand, far above whatever was trained, and below what hangs or crashes
# a machine.
SHARE = Range(0, 1)
PIXELS = Range(1, 1 << 15)  # the side of an image that a network sees
IMAGES = Range(1, 1 << 16)  # in a batch
CHANNELS = Range(1, 1 << 16)
UPDATES = Range(1, 10**9)
PROCESSES = Range(1, 1024)
WORKERS = Range(0, 256)
COUNT = Range(1, 10**6)
SEED = Range(0, 2**63 - 1)
ZOOM = Range(0.01, 100)
FACTOR = Range(0, 10**6)
POSITIVE = Range(1e-12, 10**6)

# Of the arguments of our parts: group.name, wherever in its group an argument of this name stands;
# also of what a list or mapping of this name holds.
ARGUMENTS = {
    **dict.fromkeys(("dataset.crop", "dataset.size"), PIXELS),
    "dataset.steps": UPDATES,
    "dataset.batch_size": IMAGES,
    **dict.fromkeys(("dataset.train", "dataset.val"), Range(0, 10**8)),
    "dataset.folds": Range(2, 10**4),
    "dataset.min_pixels": Range(0, 10**9),
    "dataset.enlarge": ZOOM,
    **dict.fromkeys(("augment.flip", "augment.rotate_share", "augment.blur"), SHARE),
    **dict.fromkeys(("augment.short_side", "augment.shorter", "augment.longest"), PIXELS),
    "augment.color": Range(0, 10),
    "augment.blur_kernel": Range(0, 1001),
    "augment.blur_sigma": Range(0, 100),
    "augment.elastic": Range(0, 1000),
    "augment.rotate": Range(0, 180),
    "augment.scale": ZOOM,
    "augment.scale_step": Range(0, 10),
    **dict.fromkeys(("inference.base", "inference.size", "inference.window"), PIXELS),
    **dict.fromkeys(("inference.tile", "inference.pad", "inference.min_side"), PIXELS),
    **dict.fromkeys(("inference.shorter", "inference.longest"), PIXELS),
    **dict.fromkeys(("inference.batch", "inference.window_batch"), IMAGES),
    **dict.fromkeys(("inference.count", "inference.detections"), COUNT),
    **dict.fromkeys(("inference.overlap", "inference.score", "inference.threshold"), SHARE),
    "inference.scales": ZOOM,
    "inference.enlarge": ZOOM,
    "inference.iterations": Range(0, 1000),
    **dict.fromkeys(("inference.color_std", "inference.position_std"), POSITIVE),
    "inference.smooth_std": POSITIVE,
    **dict.fromkeys(("inference.color_weight", "inference.smooth_weight"), FACTOR),
    **dict.fromkeys(("loss.weights", "loss.class_weights", "loss.border_w0"), FACTOR),
    **dict.fromkeys(("loss.hard", "loss.hard_threshold"), SHARE),
    "loss.min_kept": Range(0, 10**9),
    "loss.border_sigma": POSITIVE,
    **dict.fromkeys(("loss.box_beta", "loss.rpn_beta"), FACTOR),
    "metric.ratio": SHARE,
    **dict.fromkeys(("model.width", "model.aspp_width"), CHANNELS),
    **dict.fromkeys(("model.code", "model.hidden"), CHANNELS),
    **dict.fromkeys(("model.channels", "model.decoder"), CHANNELS),
    # 0 leaves the low-level features, or the codewords, out.
    **dict.fromkeys(("model.low_level_width", "model.codewords"), Range(0, 1 << 16)),
    **dict.fromkeys(("model.bins", "model.dilations", "model.anchors"), PIXELS),
    **dict.fromkeys(("model.dropout", "model.momentum", "model.share"), SHARE),
    "model.bn_eps": Range(0, 1),
    "model.scales": ZOOM,
    **dict.fromkeys(("model.proposals", "model.regions", "model.count"), COUNT),
    "model.mask_size": Range(1, 1024),
    "model.roi_samples": Range(0, 64),
    **dict.fromkeys(("model.levels", "model.blocks", "model.rpn_convs"), Range(1, 64)),
    **dict.fromkeys(("optimizer.betas", "optimizer.momentum"), SHARE),
    **dict.fromkeys(("optimizer.eps", "optimizer.weight_decay"), FACTOR),
    **dict.fromkeys(("optimizer.backbone_factor", "optimizer.head_factor"), FACTOR),
    **dict.fromkeys(("optimizer.bias_factor", "optimizer.norm_shift_factor"), FACTOR),
    "schedule.gamma": Range(0, 1000),
    **dict.fromkeys(("schedule.end", "schedule.warmup_factor"), SHARE),
    "schedule.warmup": Range(0, 10**9),
    "schedule.hold": UPDATES,
}

# What holds arguments of another library by their names, which has ranges of its own.
OF_OTHERS = {("augment", "extra")}


def check_range(key: str, value: float, allowed: Range) -> None:
    """Refuse a number outside of its range. Errors: UserError naming the setting and the range."""
    if value < allowed.low:
        raise UserError(f"{key}={value}: must be at least {_shown(allowed.low)}")
    if value > allowed.high:
        raise UserError(f"{key}={value}: must be at most {_shown(allowed.high)}")
    if math.isnan(value):
        raise UserError(f"{key}={value}: must be a number")


def check_arguments(group: str, node: Mapping[str, Any]) -> None:
    """Check the numbers of a part of ours; another package's arguments are its own.

    Errors: UserError naming the setting and its range.
    """
    for path, value in _numbers(node, ()):
        if (group, path[0]) in OF_OTHERS:
            continue
        for name in reversed(path):
            if allowed := ARGUMENTS.get(f"{group}.{name}"):
                check_range(".".join((group, *path)), value, allowed)
                break


def _numbers(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the numbers below a node of ours, each with the names that lead to it."""
    if isinstance(node, Mapping):
        if str(node.get("_target_", "segtrain.")).startswith("segtrain."):
            for name, value in node.items():
                yield from _numbers(value, (*path, str(name)))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _numbers(value, path)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, node


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
