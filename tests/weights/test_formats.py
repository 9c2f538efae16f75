"""Every format of weights gives the values that were written, by the names they had."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import weight_files as files

from segtrain.errors import UserError
from segtrain.weights.content import Weights
from segtrain.weights.crc32c import crc32c
from segtrain.weights.formats import read_weights


def read(folder: Path, content: bytes) -> Weights:
    """What is read from a file whose name says nothing."""
    path = folder / "weights"
    path.write_bytes(content)
    return read_weights(path)


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(UserError) as error:
        read(folder, content)
    return str(error.value)


@pytest.fixture
def foreign(data_root: Path) -> Path:
    """Files that Caffe and TensorFlow wrote themselves, with their values."""
    folder = data_root / "foreign_weights"
    if not folder.is_dir():
        pytest.skip("SEGTRAIN_DATA has no foreign_weights/, files written by Caffe and TensorFlow")
    return folder


def known(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as values:
        return {name.replace("|", "/"): torch.from_numpy(values[name]) for name in values}


@pytest.mark.parametrize("name", ["caffe_layer", "caffe_v1_layers"])
def test_what_caffe_wrote_is_read_exactly(foreign: Path, name: str) -> None:
    weights = read_weights(foreign / f"{name}.caffemodel")
    expected = known(foreign / f"{name}_values.npz")
    blobs = {key: value for key, value in expected.items() if "/" in key}
    assert weights.format == "Caffe"
    assert weights.dropped == {}
    assert weights.values.keys() == blobs.keys()
    assert files.same({key: weights.values[key] for key in blobs}, blobs)


@pytest.mark.parametrize(
    "name", ["tf_model.ckpt", "tf_model.ckpt.index", "tf_model.ckpt.data-00000-of-00001"]
)
def test_what_tensorflow_saved_is_read_exactly_by_any_of_its_names(
    foreign: Path, name: str
) -> None:
    weights = read_weights(foreign / name)
    expected = known(foreign / "tf_values.npz")
    variables = {key: value for key, value in expected.items() if not key.endswith("_NHWC")}
    assert weights.values.keys() == variables.keys()
    assert files.same({key: weights.values[key] for key in variables}, variables)
    assert weights.dropped == {
        "logits/semantic/weights/Momentum": "the optimizer's, of logits/semantic/weights"
    }


def test_what_tensorflow_froze_is_read_exactly(foreign: Path) -> None:
    weights = read_weights(foreign / "tf_frozen_graph.pb")
    name = "xception_65/entry_flow/conv1_1/weights"
    assert files.same(weights.values, {name: known(foreign / "tf_values.npz")[name]})


def test_every_format_is_told_by_its_content(tmp_path: Path) -> None:
    arrays = files.arrays()
    tensors = files.tensors()
    index = files.checkpoint(tmp_path, arrays)
    assert read_weights(index).format == "TensorFlow checkpoint"
    written = {
        "torch": files.torch_file(tensors),
        "torch before 1.6": files.torch_file(tensors, legacy=True),
        "safetensors": files.safetensors(arrays),
        "TensorFlow frozen graph": files.graph(arrays),
        "pickle": files.pickled(arrays),
    }
    for name, content in written.items():
        weights = read(tmp_path, content)
        assert weights.format == name
        assert files.same(weights.values, tensors), name
    in_order = {name: tensors[name] for name in sorted(tensors)}
    assert files.same(read_weights(index).values, in_order)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_tensors_of_every_kind_are_those_of_torch_load(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(100.0)
    state = OrderedDict(
        half=torch.ones(3).half(),
        brain=torch.randn(5).bfloat16(),
        flags=torch.tensor([True, False]),
        turned=torch.randn(4, 6).t(),
        parameter=torch.nn.Parameter(torch.randn(2)),
        part=base[10:20],
        every_second=base[50:90:2],
        scalar=torch.tensor(3),
        none=torch.empty(0, 3),
        complex=torch.randn(2, dtype=torch.complex64),
    )
    state["tied"] = state["half"]
    weights = read(tmp_path, files.torch_file(state, legacy))
    assert files.same(weights.values, torch.load(tmp_path / "weights", weights_only=True))
    assert weights.values["tied"].data_ptr() == weights.values["half"].data_ptr()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state", "model_state_dict"])
def test_weights_among_other_things_are_found(tmp_path: Path, wrapper: str, legacy: bool) -> None:
    tensors = files.tensors()
    content = {
        "epoch": 3,
        "best": torch.tensor(0.5),
        "score": np.float64(0.25),
        "optimizer": {"state": {0: torch.ones(3)}},
        "args": argparse.Namespace(lr=0.1),
        wrapper: {f"module.{name}": value for name, value in tensors.items()},
    }
    written = files.torch_file(content, legacy)
    weights = read(tmp_path, written)
    assert files.same(weights.values, tensors)
    assert weights.dropped.keys() == content.keys() - {wrapper}
    assert weights.dropped["args"] == "argparse.Namespace, which is not run"
    assert "argparse.Namespace" in weights.not_run
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "weights", weights_only=True)


def test_a_prefix_that_only_some_names_have_is_a_name(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(1), "b": torch.ones(2)}
    assert files.same(read(tmp_path, files.torch_file(tensors)).values, tensors)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_detectron_and_detectron2_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = files.arrays()
    arrays["column_major"] = np.asfortranarray(arrays["large"])
    arrays["scalar"] = arrays["large"][0, 0]
    detectron = {"blobs": arrays | {"large_momentum": arrays["large"]}, "cfg": "MODEL: ..."}
    weights = read(tmp_path, files.pickled(detectron, protocol))
    assert files.same(weights.values, arrays)
    assert weights.dropped == {
        "cfg": "of type str",
        "large_momentum": "the optimizer's, of large",
    }
    big_endian = {"a": np.arange(5, dtype=">i4"), "text": np.array(["a"])}
    detectron2 = {"model": big_endian, "__author__": "somebody", "matching_heuristics": True}
    weights = read(tmp_path, files.pickled(detectron2, protocol))
    assert files.same(weights.values, {"a": torch.arange(5, dtype=torch.int32)})
    assert weights.dropped.keys() == {"__author__", "matching_heuristics", "text"}


def test_an_array_that_python_2_pickled_is_read(tmp_path: Path) -> None:
    # What numpy under Python 2 writes: names and bytes as text of eight bits, protocol 2.
    state = b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ" + b"\xff" * 4
    state += (
        b"J" + b"\xff" * 4 + b"K\x00tb\x89U\x0c" + np.array([1, -2, 0.1], "<f4").tobytes() + b"tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    weights = read(tmp_path, b"\x80\x02}U\x05blobs}U\x07conv1_w" + array + b"ss.")
    assert files.same(weights.values, {"conv1_w": torch.tensor([1, -2, 0.1])})


def test_caffe_blobs_of_every_form_are_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    one_by_one = files.field(7, files.field(1, b"\x06"))
    one_by_one += b"".join(files.varint(5 << 3 | 5) + x.tobytes() for x in values)
    of_2014 = b"".join(
        files.field(n, size) for n, size in zip((1, 2, 3, 4), (1, 1, 2, 3), strict=True)
    )
    layers = {
        "doubles": [files.blob([2, 3], values.astype(np.float64).tobytes(), form=8)],
        "inception_3a/1x1": [one_by_one, of_2014 + files.field(5, values.tobytes())],
    }
    expected = {
        "doubles/0": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        "inception_3a/1x1/0": torch.arange(6.0),
        "inception_3a/1x1/1": torch.arange(6.0).reshape(1, 1, 2, 3),
    }
    assert files.same(read(tmp_path, files.caffemodel(layers)).values, expected)


def test_constants_of_a_graph_are_read_in_every_form(tmp_path: Path) -> None:
    floats = files.field(5, np.array([1.5, 2.5], "<f4").tobytes())
    halves = files.field(
        13, b"".join(map(files.varint, np.array([1, -2], "<f2").view("<u2").tolist()))
    )
    content = (
        files.constant("repeated", 1, [2, 2], floats)
        + files.constant("half", 19, [2], halves)
        + files.constant("negative", 3, [2], files.field(7, -1) + files.field(7, 5))
        + files.constant("zero", 2, [3], b"")
        + files.constant("text", 7, [], files.field(8, "words"))
    )
    weights = read(tmp_path, content)
    expected = {
        "repeated": torch.tensor([[1.5, 2.5], [2.5, 2.5]]),
        "half": torch.tensor([1, -2], dtype=torch.float16),
        "negative": torch.tensor([-1, 5], dtype=torch.int32),
        "zero": torch.zeros(3, dtype=torch.float64),
    }
    assert files.same(weights.values, expected)
    assert weights.dropped == {"text": "not numbers"}


def test_a_moving_average_is_kept_and_slots_are_not(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    names = ["a/w", "a/w/Adam", "a/w/Adam_1", "a/w/ExponentialMovingAverage", "global_step"]
    weights = read_weights(files.checkpoint(tmp_path, dict.fromkeys(names, one)))
    assert list(weights.values) == ["a/w", "a/w/ExponentialMovingAverage", "global_step"]
    assert set(weights.dropped) == {"a/w/Adam", "a/w/Adam_1"}


BLOCKS = [2**20 + 3, 2**20 + 5, 2**21 + 4]


@pytest.mark.parametrize(
    "length", [0, 9, 4095, 4096, 5000, *(pytest.param(n, marks=pytest.mark.slow) for n in BLOCKS)]
)
def test_checksums_do_not_depend_on_how_the_data_is_cut(length: int) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # of the catalogue of CRCs
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    data = np.random.default_rng(length).bytes(length)
    crc = 0xFFFFFFFF
    for byte in data:  # the definition, bit by bit
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = files.torch_file(files.tensors())
    finally:
        torch.serialization.set_crc32_options(before)
    assert files.same(read(tmp_path, content).values, files.tensors())


SOMETHING_ELSE = [
    (b"", "it is empty"),
    (b"\x1f\x8b\x08" + bytes(50), "packed (gzip); unpack it first"),
    (bytes(257) + b"ustar" + bytes(250), "an archive (tar); unpack it first"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    (b"<!DOCTYPE html><title>Sign in</title>", "a web page; download the file itself"),
    (b"import torch\n", "its format is not known"),
    (files.field(1, 7) + files.field(2, "net.caffemodel"), "its format is not known"),
    (files.caffemodel({"relu": []}), "it holds no tensors"),
    (files.pickled({"epoch": 3}), "it holds no tensors; save the network's state_dict()"),
    (files.torch_file(torch.nn.ReLU()), "torch.nn.modules.activation.ReLU, which is not run"),
]


@pytest.mark.parametrize(("content", "reason"), SOMETHING_ELSE, ids=[r for _, r in SOMETHING_ELSE])
def test_what_is_no_weights_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    message = refusal(tmp_path, content)
    assert message.startswith(f"{tmp_path / 'weights'}: no weights can be read from it: ")
    assert reason in message


def test_paths_that_are_no_files_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent.pth", "pipe", ".", "a\nb", "a\0b", "x" * 5000, "~nobody-here/a"):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            read_weights(tmp_path / name)


def test_shards_that_are_missing_are_named(tmp_path: Path) -> None:
    index = files.checkpoint(tmp_path, files.arrays())
    (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"model\.ckpt\.data-00000-of-00001, .* is not beside it"):
        read_weights(index)
