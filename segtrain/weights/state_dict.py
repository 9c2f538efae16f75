"""Find a network's tensors in what a checkpoint's pickle holds.

A state dict stands alone, or among other things: {"state_dict": ..., "optimizer": ..., "epoch": 7}.
`module.`, which DataParallel puts before every name, is taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.weights.content import DTYPES, Damaged, Weights, check_number, elements, tensor
from segtrain.weights.pickled import Array, Named, Pickle, Storage, Stored, Unknown

# Where the weights stand, in the order of preference: most projects, mmdetection, semseg; PANet,
# torchvision's references and detectron2; others; Detectron.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "blobs")
DETECTRON = "blobs"
MOMENTUM = "_momentum"
MAX_WRAPPERS = 3
SAVE_STATE = "save the network's state_dict()"
PREFIX = "module."
# Tensors may share their values (tied weights), so they can be more than the file, but by little.
MAX_SHARING = 4


def weights_of(
    pickled: Pickle, form: str, size: int, read: Callable[[Storage], bytearray] | None = None
) -> Weights:
    """Return the tensors that a pickle of a file of `size` bytes holds. Errors: Damaged.

    `read` gives the bytes of a storage. Without it the file has none.
    """
    entries, dropped = _unwrap(pickled)
    check_number(len(entries))
    if sum(_bytes(value) for value in entries.values()) > MAX_SHARING * size:
        raise Damaged("its tensors are larger than the file")
    values: dict[str, Tensor] = {}
    loaded: dict[str, Tensor] = {}
    for name, value in entries.items():
        if isinstance(value, np.ndarray):
            values[name] = _copied(value)
        elif read is None:
            raise Damaged("its tensors stand in another file", SAVE_STATE)
        elif elements(value.shape) > value.storage.count:
            dropped[name] = "more elements than are stored: one value repeated"
        else:
            key = value.storage.key
            if key not in loaded:
                whole = pickled.storages[key]
                loaded[key] = tensor(read(whole), whole.dtype, [whole.count])
            values[name] = _view(value, loaded[key])
    if not values:
        asks = f" but asks for {pickled.not_run[0]}" if pickled.not_run else ""
        raise Damaged(f"it holds no tensors{asks}", SAVE_STATE)
    if all(name.startswith(PREFIX) for name in values):
        values = {name.removeprefix(PREFIX): value for name, value in values.items()}
    return Weights(form, values, dropped, pickled.not_run)


def _unwrap(pickled: Pickle) -> tuple[dict[str, np.ndarray | Stored], dict[str, str]]:
    """Return the tensors by name, and why everything beside them is left out."""
    content = pickled.value
    dropped: dict[str, str] = {}
    wrapper = None
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, dict):
            raise Damaged(f"its content is {_kind(content)}, no table of names", SAVE_STATE)
        inside = next((n for n in WRAPPERS if _may_hold_weights(content.get(n))), None)
        if inside is None:
            break
        dropped |= {n: _kind(value) for n, value in content.items() if n != inside}
        content = content[inside]
        wrapper = inside
    entries = {}
    for name, value in content.items():
        entry = value.numpy if isinstance(value, Array) else value
        variable = name.removesuffix(MOMENTUM)
        if wrapper == DETECTRON and variable != name and variable in content:
            dropped[name] = f"the optimizer's, of {variable}"
        elif isinstance(entry, Stored | np.ndarray):
            entries[name] = entry
        else:
            dropped[name] = _kind(value)
    return entries, dropped


def _may_hold_weights(value: Any) -> bool:
    """Tell whether a value is a table with a tensor, or with a wrapper, among its entries."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(v, Array | Stored) for v in value.values()) or any(
        isinstance(value.get(name), dict) for name in WRAPPERS
    )


def _kind(value: Any) -> str:
    """Say what a value is that is no tensor."""
    match value:
        case Unknown(name) | Named(name):
            return f"{name}, which is not run"
        case None:
            return "nothing"
        case Array(numpy=None):
            return "an array of other things than numbers"
        case Stored() | Array():
            return "a tensor beside the network's"
    return f"of type {type(value).__name__}"


def _bytes(value: np.ndarray | Stored) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    count = elements(value.shape)
    return 0 if count > value.storage.count else count * value.storage.dtype.itemsize


def _copied(array: np.ndarray) -> Tensor:
    """Return an array's values in this machine's byte order, where they can be written to."""
    if array.dtype.str[1:] not in DTYPES:
        raise Damaged(f"an array of {array.dtype}")
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=native, order="C", copy=True))


def _view(stored: Stored, values: Tensor) -> Tensor:
    """Return a tensor as a view of its storage's values, (count,). Errors: Damaged."""
    storage = stored.storage
    count = elements(stored.shape)
    elements(stored.stride)  # whole numbers, none of them negative
    if len(stored.stride) != len(stored.shape):
        raise Damaged("a tensor with other strides than dimensions")
    steps = zip(stored.shape, stored.stride, strict=True)
    last = stored.offset + sum((n - 1) * step for n, step in steps)
    if stored.offset < 0 or storage.start < 0 or (count and last >= storage.count):
        raise Damaged("a tensor that reaches beyond its storage")
    if count == 0:
        return torch.empty(stored.shape, dtype=storage.dtype)
    return values.as_strided(stored.shape, stored.stride, storage.start + stored.offset)
