"""Read settings as a user types them: `key=value`, `+key=value`, `~key`. The one grammar.

Text is what was typed. Where a setting takes text (a `str` of the schema, an argument annotated
`str` or `Path`, a folder of Hydra's), every character counts, and only these are special: an
unquoted `null` where null is allowed, `${...}`, one pair of outer quotes, and a leading `~`. All
other values are numbers, lists and mappings in Hydra's grammar. No torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from segtrain.config.bounds import refuse_many_references
from segtrain.config.schema import DatasetKeys, RunConf
from segtrain.config.sources import resolve
from segtrain.errors import UserError, printable

MAX_RUNS = 1000  # of one sweep: each is trained
_WORD = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^\s=+~'\"\[{(][^\s='\"]*)(=(?P<text>.*))?")


class Setting(NamedTuple):
    """One setting of a command line."""

    sign: str  # "", "+", "++" or "~"
    key: str  # dotted, or the name of a config group
    text: str  # what follows `=`, as it was typed; "" for `~key` alone
    word: str  # the whole of it, for messages


class Unknown:
    """Stands for the annotation of a key that there is not."""


def read(word: str) -> Setting:
    """Read one word of a command line that is `key=value` or `~key`.

    Errors: UserError, also for a value that is empty or holds a control character.
    """
    match = _WORD.fullmatch(word)
    if printable(word) != word:
        raise UserError(f"{printable(word)}: holds a control character, such as the end of a line")
    refuse_many_references(f"{word:.80}", word)
    if match is None or (match["text"] is None and match["sign"] != "~"):
        raise UserError(f"{word}: not understood; settings are written key=value")
    if match["text"] is not None and not unquoted(match["text"]).strip():
        raise UserError(f"{match['key']}=: a value is missing; write {match['key']}=VALUE")
    return Setting(match["sign"] or "", match["key"], match["text"] or "", word)


def unquoted(text: str) -> str:
    """Return a text without the one pair of quotes around it, if there is one."""
    quote = text[:1]
    if len(text) < 2 or quote not in ("'", '"') or text[-1] != quote:
        return text
    inner = text[1:-1]
    if re.search(rf"(?<!\\){quote}", inner) or inner.endswith("\\"):
        return text  # 'a','b': quotes, but no pair around the whole
    return inner.replace(f"\\{quote}", quote)


def as_text(text: str) -> str:
    """Return the text that was typed: one pair of outer quotes goes, a leading `~` is a home."""
    text = unquoted(text)
    return str(at_home(text)) if text.startswith("~") else text


def at_home(path: str | Path) -> Path:
    """Return a path whose leading `~` is a home; that of nobody here is the name of a file."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


# What a key takes


def hint_at(run: Mapping[str, Any], key: str) -> Any:
    """Return the annotation of the value at `key` of a run, `Unknown` where there is no such key.

    `run` are plain types. The schema knows the run's own groups, the source of its `_target_` each
    part.
    """
    hint: Any = RunConf
    node: Any = run
    path: list[str] = []
    for word in key.split("."):
        hint = _below(node, hint, word, ".".join(path))
        if hint is Unknown:
            return Unknown
        node = node.get(word) if isinstance(node, Mapping) else None
        path.append(word)
    return hint


def _below(node: Any, hint: Any, word: str, path: str) -> Any:
    """Return the annotation of `word` in a node, which stands at `path` and is annotated `hint`."""
    if is_dataclass(hint):
        return get_type_hints(hint).get(word, Unknown)
    if isinstance(node, Mapping) and "_target_" in node:
        if word == "_target_":
            return str
        known = resolve(node["_target_"], f"{path}._target_").parameters
        if word in known:
            return known[word].hint
        of_run = get_type_hints(DatasetKeys) if path == "dataset" else {}
        return of_run.get(word, Unknown)
    for option in options(hint):
        if get_origin(option) is dict:
            return get_args(option)[1]
        if option in (dict, Any, object):
            return Any
    return Unknown


def options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one hint."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def takes_text(hint: Any) -> bool:
    """Tell whether text may stand where an annotation says `hint`."""
    return any(
        option in (str, Path)
        or (get_origin(option) is Literal and all(type(w) is str for w in get_args(option)))
        for option in options(hint)
    )


def value(setting: Setting, hint: Any) -> Any:
    """Return the value of a setting whose key takes `hint`. Errors: UserError."""
    if not takes_text(hint):
        of_texts = any(_of_texts(option) for option in options(hint))
        return (of_texts and _listed(setting.text)) or parsed(setting)
    others = [option for option in options(hint) if option not in (str, Path, NoneType)]
    if any(_of_texts(option) for option in others) and (texts := _listed(setting.text)):
        return texts
    others = [get_origin(o) or o for o in others if get_origin(o) is not Literal]
    if setting.text == "null" and NoneType in options(hint):
        return None
    if others and unquoted(setting.text) == setting.text:  # `str | list[str]`: [a,b] is a list
        try:
            other = parsed(setting)
        except UserError:
            return as_text(setting.text)
        if type(other) in others:
            return other
    return as_text(setting.text)


def _of_texts(hint: Any) -> bool:
    """Tell whether an annotation is a list of texts."""
    return get_origin(hint) in (list, tuple) and all(
        takes_text(inner) for inner in get_args(hint) if inner is not ...
    )


def _listed(text: str) -> list[str]:
    """Return the texts of a list `[a,b]`; none where it holds more than texts, or nothing."""
    inner = text[1:-1]
    if not (text.startswith("[") and text.endswith("]")) or re.search(r"[\[\]{}]|\bnull\b", inner):
        return []
    return [as_text(part) for part in split_commas(inner)] if inner.strip() else []


# A word outside of quotes with letters that Hydra's grammar does not know.
_FOREIGN = re.compile(r"(?<=[\[{,:])\s*([^\[\]{},:'\"]*[^\x00-\x7f][^\[\]{},:'\"]*?)\s*(?=[\]},:])")


def parsed(setting: Setting) -> Any:
    """Return a value in Hydra's grammar: a number, a list, a mapping, or a word.

    Errors: UserError naming the setting, also where it holds several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        text = _FOREIGN.sub(r"'\1'", setting.text)
        override = OverridesParser.create().parse_override(f"value={text}")
    except HydraException:
        quotable = setting.text.replace("\\", "\\\\").replace('"', '\\"')
        raise UserError(
            f"{setting.word}: not understood; lists are written {setting.key}=[1,2], mappings "
            f"{setting.key}={{a: 1}}, and what holds spaces, brackets or commas stands in quotes, "
            f"in a shell '{setting.sign}{setting.key}=\"{quotable.strip('[]{}')}\"'"
        ) from None
    if override.is_sweep_override():
        raise UserError(
            f"{setting.word}: several values are several runs: segtrain -m {setting.word}; "
            f"one list is written {setting.key}=[...]"
        )
    return override.value()


# Several values, with -m


def several(setting: Setting, names: list[str]) -> list[str]:
    """Return the texts that a setting of a sweep stands for, one where it is no sweep.

    Unquoted commas separate values; `choice(a,b)`, `range(1,4)` and `glob(r*)` are Hydra's; `names`
    are those that a glob chooses from. Errors: UserError.
    """
    parts = split_commas(setting.text)
    call = re.fullmatch(r"(\w+)\((.*)\)", setting.text)
    if len(parts) > 1 or call is None:
        return parts
    if call[1] == "choice":
        return split_commas(call[2])
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"value={setting.text}")
    except HydraException:
        return [setting.text]  # text that happens to look like a call
    if not override.is_sweep_override():
        return [setting.text]
    chosen_from = override.value()
    if isinstance(chosen_from, Glob):
        chosen = chosen_from.filter(names)
        if not chosen:
            raise UserError(f"{setting.word}: fits none of {', '.join(names) or 'nothing'}")
        return chosen
    if not override.is_discrete_sweep():
        raise UserError(
            f"{setting.word}: is for a search, hydra/sweeper=optuna; list the values, or write "
            "range(START,STOP,STEP)"
        )
    texts = list(itertools.islice(override.sweep_string_iterator(), MAX_RUNS + 1))
    if len(texts) > MAX_RUNS:
        raise UserError(f"{setting.word}: stands for more than {MAX_RUNS:,} runs")
    return texts


def split_commas(text: str) -> list[str]:
    """Return the parts of a text between commas that stand in no quotes and no brackets."""
    parts = [""]
    closing: list[str] = []  # what must come before a comma counts again
    for index, letter in enumerate(text):
        begins = not parts[-1].strip() or parts[-1].rstrip()[-1] in "[{(,:"
        if closing and letter == closing[-1]:
            if letter not in "'\"" or text[index - 1] != "\\":
                closing.pop()
        elif closing and closing[-1] in "'\"":
            pass
        elif letter in "'\"" and begins:  # elsewhere it is an apostrophe
            closing.append(letter)
        elif letter in "[{(":
            closing.append({"[": "]", "{": "}", "(": ")"}[letter])
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts] if not closing else [text]
