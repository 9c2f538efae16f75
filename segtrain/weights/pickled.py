"""Read pickles without unpickling: nothing is imported, and nothing that they name is called.

A pickle is a program for a machine with a stack and a memory ("memo"). Most of its instructions
push a plain value or put values together; `GLOBAL` names a class or function and `REDUCE` calls it,
which is how a pickle can run anything. `pickletools` of the standard library takes the program
apart. Here it is run with plain values only. What a call would have made is worked out for the few
functions that arrays and tensors are written with, and is `Unknown` for all others. Text of
Python 2 is read as latin-1, as numpy's arrays of that time need.

A small program must not become a large value. Containers are built from what is on the stack, so
they cost some bytes for each instruction, of which there are at most MAX_OPCODES. What copies
values (`_Machine.spend`) may not copy more than the file has. Only text becomes a key: numbers can
be chosen to have one hash, and tuples in tuples take long to hash.
Sources: Lib/pickletools.py of CPython, numpy's `array.__reduce__`, torch/_utils.py.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch

from segtrain.weights.content import Damaged, elements

# A checkpoint of a large detector with its optimizer has some 100,000.
MAX_OPCODES = 1_000_000
MAX_NAME = 200
# Instructions whose argument is the value that they push.
PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # of Python 2
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# What the storage classes of torch hold.
STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that a pickle names."""

    name: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """What a class or function would have made that was not run."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """`count` values under a key; they stand elsewhere in the file, where torch writes them."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of torch as a view of its storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True)
class DType:
    """A dtype of numpy; None for one that holds no numbers."""

    numpy: np.dtype | None


@dataclass(slots=True)
class Array:
    """An array of numpy, made empty and filled later; None while it is, or if it never can be."""

    numpy: np.ndarray | None = None


@dataclass
class _Machine:
    """What a pickle's program works on."""

    spare: int  # bytes that may still be copied
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    not_run: dict[str, None] = field(default_factory=dict)  # a set in order
    storages: dict[str, Storage] = field(default_factory=dict)

    def spend(self, count: int) -> None:
        """Account for copied bytes. Errors: Damaged."""
        self.spare -= count
        if self.spare < 0:
            raise Damaged("it unpacks to more than its own size")

    def after_mark(self) -> list[Any]:
        """Take off the stack what was put there since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def unknown(self, name: str) -> Unknown:
        """Note that something was not run, and return what stands for its result."""
        self.not_run[name] = None
        return Unknown(name)


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds; the storages are what torch keeps outside it, by key."""

    value: Any
    not_run: tuple[str, ...]
    storages: dict[str, Storage]


class _Bounded:
    """A file as `pickletools` reads it: a length that nobody has is not allocated."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file = file
        self.end = end
        self.tell = file.tell
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """Read as many bytes, or what is left."""
        return self.file.read(min(count, self.end - self.file.tell()))


def read_pickle(file: BinaryIO, end: int) -> Pickle:
    """Read the pickle at which a file of `end` bytes stands, and stop behind it.

    Errors: Damaged.
    """
    machine = _Machine(spare=end)
    try:
        program = pickletools.genops(_Bounded(file, end))  # ty: ignore[invalid-argument-type]
        for count, (code, argument, _) in enumerate(program):
            if count > MAX_OPCODES:
                raise Damaged(f"a pickle of more than {MAX_OPCODES} instructions")
            _step(machine, code.name, argument)
        value = machine.stack.pop()
    # What is no pickle fails in as many ways: a value off an empty stack, a list that is none.
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise Damaged(f"its pickle is damaged ({type(error).__name__})") from None
    return Pickle(value, tuple(machine.not_run), machine.storages)


def _step(machine: _Machine, code: str, argument: Any) -> None:
    """Run one instruction."""
    stack = machine.stack
    if code in PLAIN:
        stack.append(argument)
        return
    if code in CONSTANTS:
        stack.append(CONSTANTS[code])
        return
    match code:
        case "PROTO" | "FRAME" | "STOP":
            pass
        case "MARK":
            machine.marks.append(len(stack))
        case "POP":
            if machine.marks and machine.marks[-1] == len(stack):
                machine.marks.pop()
            else:
                stack.pop()
        case "POP_MARK":
            machine.after_mark()
        case "DUP":
            stack.append(stack[-1])
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            if not 0 <= argument <= MAX_OPCODES:
                raise Damaged("a place in memory that no pickle uses")
            machine.memo[argument] = stack[-1]
        case "MEMOIZE":
            machine.memo[len(machine.memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(machine.memo[argument])
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_SET":
            stack.append(Unknown("set"))
        case "LIST":
            stack.append(machine.after_mark())
        case "TUPLE":
            stack.append(tuple(machine.after_mark()))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            length = int(code[-1])
            items = tuple(stack[-length:])
            del stack[-length:]
            stack.append(items)
        case "DICT":
            items = machine.after_mark()
            stack.append({})
            _set_items(stack[-1], items)
        case "FROZENSET":
            machine.after_mark()
            stack.append(Unknown("frozenset"))
        case "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        case "APPENDS":
            items = machine.after_mark()
            _append(stack[-1], items)
        case "ADDITEMS":
            machine.after_mark()
        case "SETITEM":
            items = [stack.pop(-2), stack.pop()]
            _set_items(stack[-1], items)
        case "SETITEMS":
            items = machine.after_mark()
            _set_items(stack[-1], items)
        case _:
            _step_of_objects(machine, code, argument)


def _step_of_objects(machine: _Machine, code: str, argument: Any) -> None:
    """Run one of the instructions that, in `pickle`, import or call something."""
    stack = machine.stack
    match code:
        case "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
            name = stack.pop()
            stack.append(_named(stack.pop(), name))
        case "REDUCE":
            arguments = stack.pop()
            stack.append(_call(machine, stack.pop(), arguments))
        case "NEWOBJ":
            stack.pop()
            stack.append(_instance(machine, stack.pop()))
        case "NEWOBJ_EX":
            del stack[-2:]
            stack.append(_instance(machine, stack.pop()))
        case "INST":
            machine.after_mark()
            stack.append(_instance(machine, _named(*argument.split(" ", 1))))
        case "OBJ":
            stack.append(_instance(machine, machine.after_mark()[0]))
        case "BUILD":
            state = stack.pop()
            _build(machine, stack[-1], state)
        case "BINPERSID":
            stack.append(_stored_elsewhere(machine, stack.pop()))
        case "EXT1" | "EXT2" | "EXT4":
            stack.append(machine.unknown(f"extension {argument}"))
        case _:
            raise Damaged(f"its pickle keeps values outside itself ({code})")


def _append(target: Any, items: list[Any]) -> None:
    """Append to a list; what was not run takes anything and keeps nothing."""
    if not isinstance(target, Unknown):
        if not isinstance(target, list):
            raise Damaged("its pickle appends to what is no list")
        target.extend(items)


def _set_items(target: Any, items: list[Any]) -> None:
    """Set keys and values in turn. Other keys than text are left out; no tensor has them."""
    if isinstance(target, Unknown):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise Damaged("its pickle sets a key of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str):
            target[key] = value


def _named(module: Any, name: Any) -> Named:
    """Return a class or function by its name; both parts must be text, and short."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("its pickle names a class that has no name")
    if len(module) + len(name) > MAX_NAME:
        raise Damaged("its pickle names a class with a name that no class has")
    return Named(f"{module}.{name}")


def _instance(machine: _Machine, what: Any) -> Any:
    """Return what stands for a new object of a class."""
    if not isinstance(what, Named):
        return machine.unknown("an object of no class")
    return {} if what.name == "collections.OrderedDict" else machine.unknown(what.name)


def _call(machine: _Machine, what: Any, arguments: Any) -> Any:
    """Return what a call would have made, for the functions that are known."""
    if not isinstance(what, Named) or not isinstance(arguments, tuple):
        return machine.unknown(what.name if isinstance(what, Unknown) else "a call of no function")
    # numpy 2 renamed the module.
    match what.name.replace("numpy._core.", "numpy.core."), arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):
            table: dict[Any, Any] = {}
            machine.spend(len(pairs))
            for pair in pairs:
                _set_items(table, list(pair[:2]))
            return table
        case "collections.defaultdict", _:
            return {}
        case "_codecs.encode", (str(text), "latin1" | "latin-1"):
            machine.spend(len(text))
            return text.encode("latin-1")
        case "__builtin__.bytes" | "builtins.bytes", ():
            return b""
        case "numpy.dtype", (str(code), *_):
            return DType(_dtype(code))
        case "numpy.core.multiarray._reconstruct", (Named("numpy.ndarray"), *_):
            return Array()
        case "numpy.core.multiarray.scalar", (DType(numpy=np.dtype() as dtype), data):
            return Array(_array(machine, data, dtype, (), "C"))
        case "numpy.core.numeric._frombuffer", (
            data,
            DType(numpy=np.dtype() as dtype),
            tuple(shape),
            "C" | "F" as order,
        ):
            return Array(_array(machine, data, dtype, shape, order))
        case "torch.Size", (tuple(shape),):
            return shape
        case "torch._tensor._rebuild_from_type_v2", (Named() as inner, _, tuple(given), _):
            # A tensor with attributes of its own. Its inner call is none of this kind again.
            return _tensor(machine, inner.name, given)
        case name, _:
            return _tensor(machine, name, arguments)


def _tensor(machine: _Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what one of torch's functions for a saved tensor would have made."""
    match name, arguments:
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (
            Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(stride),
            *_,
        ):
            return Stored(storage, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (Stored() as tensor, *_):
            return tensor
        case "torch._utils._rebuild_parameter_with_state", (Stored() as tensor, *_):
            return tensor
    return machine.unknown(name)


def _dtype(code: str) -> np.dtype | None:
    """Return the dtype of a letter and a size ("f4"), little-endian until its state says more."""
    return np.dtype(f"<{code}") if re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code) else None


def _build(machine: _Machine, target: Any, state: Any) -> None:
    """Give an object its state. Only arrays and dtypes have one that matters."""
    match target, state:
        case DType(numpy=dtype), (int(), str(order), None, None, None, *_) if dtype is not None:
            target.numpy = dtype.newbyteorder(order if order in "<>=|" else "=")
        case DType(), _:
            target.numpy = None
        case Array(), (int(), tuple(shape), DType(numpy=dtype), fortran, data):
            if dtype is not None:
                target.numpy = _array(machine, data, dtype, shape, "F" if fortran else "C")


def _array(
    machine: _Machine, data: Any, dtype: np.dtype, shape: Sequence[int], order: str
) -> np.ndarray:
    """Return the values in `data` as (*shape). Errors: Damaged."""
    if isinstance(data, str):  # Python 2
        machine.spend(len(data))
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray) or elements(shape) * dtype.itemsize != len(data):
        raise Damaged("an array whose bytes do not fit its shape")
    flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _stored_elsewhere(machine: _Machine, identity: Any) -> Any:
    """Return the storage that torch means by a "persistent id"."""
    match identity:
        case ("storage", Named(name), str(key), _, int(count), *_) if 0 <= count < 2**60:
            kind = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
            if kind is None or kind[1] not in STORAGES:
                return machine.unknown(name)
            storage = Storage(key, STORAGES[kind[1]], count)
            if machine.storages.setdefault(key, storage) != storage and count:
                raise Damaged(f"two sizes or dtypes of the storage {key[:80]!r}")
            match identity[5:6]:  # of the time before torch 0.4: a part of another storage
                case [(_, int(start), int(length))]:
                    return Storage(key, storage.dtype, length, start)
            return storage
        case ("module", Named(name), *_):  # a class with its source text
            return Named(name)
    raise Damaged("its pickle keeps values where no file of torch keeps them")
