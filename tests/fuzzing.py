"""Random and mutated inputs, and the limits under which one is read."""

from __future__ import annotations

import copy
import json
import random
import resource
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segtrain.errors import SegtrainError

CPU_SECONDS = 5.0  # that one input may take; most take milliseconds
SECONDS = 120.0  # that it may wait; a busy machine gives a process a twentieth of its time
BYTES = 1 << 30  # of memory that one input may take beyond what the tests have
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\n",
    b"\r",
    b"{",
    b"[" * 50,
)
ODD_TEXTS = (
    *("", " ", "\n", "\t", "\0", "\x1b[2J", "é", "e\u0301", "\u202e", "\ufeff", "٣", "x" * 3000),
    *("null", "true", "nan", "-inf", "1e999", "0x10", "1_000", "1.", ".5", "-0", "9" * 30, "007"),
    *("[", "]", "{", "}", "[[]]", "{}", "{a: 1}", "[1,", "a,b", "'", '"', "\\", "\\'", "''", "~"),
    *("=", "==", ":", "::", "@", "@x", "++", "+", "-", "--", "/", "//", "..", "../..", "%s", "{0}"),
    *(
        "${",
        "${x}",
        "${oc.env:HOME}",
        "${now:%Y}",
        "$",
        "!!python/name:os.system",
        "&a",
        "*a",
        "<<",
    ),
    *("#", "# x", "- ", "---", "...", "range(1,3)", "choice(a,b)", "glob(*)", "_target_", "a.b.c"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 256, 2**31, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e-320),
    *(1e15, 1e308, float("nan"), float("inf"), [], [[]], {}, [None], [1, 2, 3], {"a": {"b": 1}}),
    *ODD_TEXTS,
)


class TooLong(BaseException):
    """A case did not end in time."""


@contextmanager
def limits() -> Generator[None]:
    """End what takes longer than CPU_SECONDS or SECONDS, or more than BYTES of memory."""

    def stop(*_: object) -> None:
        raise TooLong

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    clocks = (
        (signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS),
        (signal.ITIMER_REAL, signal.SIGALRM, SECONDS),
    )
    before = [signal.signal(number, stop) for _, number, _ in clocks]
    for clock, _, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(read: Callable[[], object]) -> str:
    """Return "read", "refused", or what must not happen: another error, no end, no memory."""
    try:
        with limits():
            read()
    except SegtrainError:
        return "refused"
    except TooLong:
        return f"no end after {CPU_SECONDS} s of computing or {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Damage a file in one to four places; one in fifty is noise altogether."""
    if dice.random() < 0.02:
        return dice.randbytes(dice.randrange(300))
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        # Half of it near the start, where what describes the rest mostly stands.
        end = len(data) if dice.random() < 0.5 else min(len(data), 200)
        at = dice.randrange(end + 1)
        other = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(data):
                data[at] = dice.randrange(256)
            case 2:
                odd = dice.choice(ODD_BYTES)
                data[at : at + len(odd)] = odd
            case 3:
                data[at:at] = dice.choice(ODD_BYTES)
            case 4:
                del data[at : at + dice.randrange(1, 20)]
            case 5:
                data[at:at] = data[other : other + dice.randrange(1, 60)]
            case _ if dice.random() < 0.3:
                del data[at:]
    return bytes(data)


def mutated_text(text: str, dice: random.Random) -> str:
    """Put odd texts into a text, in one to three places, or drop some of it."""
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(text) + 1)
        gone = dice.choice([0, 0, 1, 3, 10])
        text = text[:at] + dice.choice(ODD_TEXTS) + text[at + gone :]
    return text


def mutated_tree(tree: Any, dice: random.Random) -> Any:
    """Change one to three nodes of a tree of lists and dicts: other values, other keys, none."""
    tree = copy.deepcopy(tree)
    for _ in range(dice.randint(1, 3)):
        places = [(tree, key) for key in keys(tree)]
        for parent, key in places:
            places += [(parent[key], below) for below in keys(parent[key])]
        if not places:
            return dice.choice(ODD_VALUES)
        parent, key = dice.choice(places)
        match dice.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[dice.choice(ODD_TEXTS)] = parent.pop(key)
            case 1:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 2:
                there, name = dice.choice(places)
                if name in keys(there):
                    parent[key] = copy.deepcopy(there[name])
            case 3:
                parent[key] = [parent[key]] if dice.random() < 0.5 else {"x": parent[key]}
            case _:
                parent[key] = dice.choice(ODD_VALUES)
    return tree


def keys(node: Any) -> list[Any]:
    """Return the keys of a dict, the numbers of a list, nothing of others."""
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def mutated_json(tree: Any, dice: random.Random) -> bytes:
    """Return a changed tree as a file of JSON, whose text is damaged as well at times."""
    content = json.dumps(mutated_tree(tree, dice)).encode()
    return mutated(content, dice) if dice.random() < 0.25 else content
