"""Read other people's weight files: the format is told by the content, not by the name.

A file is a stranger's. Nothing in it is run, what it claims is compared with its size, and
whatever is wrong with it is one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from segtrain.errors import UserError, printable
from segtrain.weights.caffemodel import NAME_AND_BLOBS, read_caffemodel
from segtrain.weights.content import Damaged, Weights, open_regular, size_of
from segtrain.weights.pickled import read_pickle
from segtrain.weights.protobuf import fields_of_file
from segtrain.weights.safetensors_file import read_safetensors, starts_safetensors
from segtrain.weights.state_dict import weights_of
from segtrain.weights.tensorflow_checkpoint import MAGIC, read_checkpoint
from segtrain.weights.tensorflow_graph import is_node, read_frozen_graph
from segtrain.weights.torch_file import LEGACY_HEAD, ZIP, read_torch_legacy, read_torch_zip

HEAD_BYTES = 512
# A pickle of protocol 2 on says so; before, a dict begins one of these ways.
PICKLES = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"(d", b"}", b"ccoll")
UNPACK = "unpack it first"
# What people have in place of weights, by its first bytes, and the way out.
SOMETHING_ELSE = {
    b"\x1f\x8b": ("it is packed (gzip)", UNPACK),
    b"BZh": ("it is packed (bzip2)", UNPACK),
    b"\xfd7zXZ": ("it is packed (xz)", UNPACK),
    b"7z\xbc\xaf": ("it is packed (7z)", UNPACK),
    b"\x89HDF": ("it is an HDF5 file", "save it in its framework's own format"),
    b"version https://git-lfs": ("it is a pointer of Git LFS", "fetch the file that it stands for"),
    b"<": ("it is a web page", "download the file itself"),
}
KNOWN = (
    "torch's .pth, .safetensors, .caffemodel, TensorFlow's checkpoints and frozen graphs, pickles "
    "of Detectron and detectron2"
)


def read_weights(path: str | Path) -> Weights:
    """Return the tensors of a file by the names that they have there.

    TensorFlow's checkpoints are three files of one name: the name alone is understood, and any of
    the files. Errors: UserError, in one line, whatever is wrong with the file.
    """
    try:
        source = _index_of(Path(path).expanduser())
        with open_regular(source) as file:
            weights = _read(file, source)
        if not weights.values:
            raise Damaged("it holds no tensors", "is it the file that was meant?")
        return weights
    except Damaged as error:
        reason = str(error)
    # Whatever a damaged file makes the libraries below say, and files that come and go.
    except Exception as error:
        reason = str(Damaged(f"it is damaged ({type(error).__name__})"))
    line = f"{path}: no weights can be read from it: {reason}"
    # Names may hold what no terminal can show.
    raise UserError(printable(line.encode(errors="backslashreplace").decode())) from None


def _index_of(path: Path) -> Path:
    """Return the file with the table, if a TensorFlow checkpoint is meant; else the path."""
    name = path.name.partition(".data-")[0]
    index = path.with_name(f"{name}.index") if name else path
    return index if (name != path.name or not path.exists()) and index.is_file() else path


def _read(file: BinaryIO, path: Path) -> Weights:
    size = size_of(file)
    head = file.read(HEAD_BYTES)
    file.seek(max(0, size - len(MAGIC)))
    tail = file.read()
    file.seek(0)
    if head.startswith(ZIP):
        return read_torch_zip(file)
    if head.startswith(LEGACY_HEAD):
        return read_torch_legacy(file)
    if tail == MAGIC:
        return read_checkpoint(file, path)
    if starts_safetensors(head, size):
        return read_safetensors(file)
    if head.startswith(PICKLES):
        return weights_of(read_pickle(file, size), "pickle", size)
    if head[257:262] == b"ustar":
        raise Damaged("it is an archive (tar)", UNPACK)
    for start, (what, way_out) in SOMETHING_ELSE.items():
        if head.startswith(start):
            raise Damaged(what, way_out)
    match _message(file):
        case "Caffe":
            return read_caffemodel(file)
        case "TensorFlow":
            return read_frozen_graph(file)
    if size == 0:
        raise Damaged("it is empty")
    raise Damaged("its format is not known", f"what can be read: {KNOWN}")


def _message(file: BinaryIO) -> str:
    """Tell whose protobuf message a file is, which has no mark of its own; "" for nobody's.

    Caffe's begins with its name or its layers, TensorFlow's with its nodes.
    """
    try:
        for number, value in fields_of_file(file):
            if isinstance(value, int):
                return ""
            if number == 1 and is_node(value):
                return "TensorFlow"
            if number in NAME_AND_BLOBS:
                return "Caffe"
    except Damaged:
        pass
    return ""
