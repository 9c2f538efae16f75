"""Label maps in MATLAB files.

The files are written by scipy, in the layouts of SBD and PASCAL-Context.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

from segtrain.data import mat
from segtrain.data.mat import read_mat
from segtrain.errors import DataError

PLANE = np.arange(12).reshape(3, 4)


def sbd(plane: np.ndarray) -> dict[str, Any]:
    """GTcls as SBD's cls files hold it: boundaries as a cell of sparse matrices, the plane, the
    classes present.
    """
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = sparse.csc_matrix(plane == i)
    return {
        "GTcls": {
            "Boundaries": boundaries,
            "Segmentation": plane,
            "CategoriesPresent": np.unique(plane)[:, None],
        }
    }


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "kind", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64"]
)
def test_whole_numbers_of_any_type_are_read(tmp_path: Path, kind: str, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    other = {"name": "text", "first": np.zeros((2, 2, 2)), "nothing": np.zeros((0, 0))}
    savemat(path, other | {"LabelMap": PLANE.astype(kind)}, do_compression=compressed)
    found = read_mat(path, "LabelMap")
    assert found.tolist() == PLANE.tolist()
    assert found.flags.c_contiguous
    assert found.dtype == ("int64" if "float" in kind else kind)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_plane_of_sbds_struct_is_found_among_its_other_fields(
    tmp_path: Path, compressed: bool
) -> None:
    savemat(tmp_path / "a.mat", sbd(PLANE.astype(np.uint8)), do_compression=compressed)
    assert read_mat(tmp_path / "a.mat", "GTcls", "Segmentation").tolist() == PLANE.tolist()


def test_files_of_big_endian_machines_are_read(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    body = (
        element(6, struct.pack(">II", 11, 0))
        + element(5, struct.pack(">ii", 2, 2))
        + element(1, b"LabelMap")
    )
    body += element(4, struct.pack(">4H", 1, 2, 300, 4))  # columns first
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, body))
    assert read_mat(path, "LabelMap").tolist() == [[1, 300], [2, 4]]
    assert read_mat(path, "LabelMap").dtype == np.uint16  # and in this machine's own order


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Other": PLANE}, "holds no label map `LabelMap`; is it a file of this data set"),
        ({"LabelMap": PLANE + 0.5}, "LabelMap holds fractions"),
        ({"LabelMap": np.full((1, 1), np.nan)}, "LabelMap holds fractions"),
        ({"LabelMap": np.zeros((2, 2, 2))}, r"class 6 and size \[2, 2, 2\], but must be a plane"),
        ({"LabelMap": np.zeros((0, 4))}, "must be a plane of numbers"),
        ({"LabelMap": "text"}, "must be a plane of numbers"),
        ({"LabelMap": {"x": PLANE}}, "must be a plane of numbers"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: dict, message: str) -> None:
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.mat: .*{message}"):
        read_mat(tmp_path / "a.mat", "LabelMap")


def test_a_struct_without_the_field_and_a_plane_instead_of_a_struct_are_named(
    tmp_path: Path,
) -> None:
    savemat(tmp_path / "a.mat", {"GTcls": {"Boundaries": PLANE}})
    savemat(tmp_path / "b.mat", {"GTcls": PLANE})
    for name in "ab":
        with pytest.raises(DataError, match=f"{name}.mat: holds no label map `GTcls.Segmentation`"):
            read_mat(tmp_path / f"{name}.mat", "GTcls", "Segmentation")


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    for content, message in [
        (b"", "empty, damaged or of another format"),
        (b"\x89PNG\r\n\x1a\n" * 40, "empty, damaged or of another format"),
        (
            b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM" + b"\0" * 400,
            "7.3 .HDF5. is not supported; save it again",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: .*{message}"):
            read_mat(path, "LabelMap")
    savemat(path, {"LabelMap": PLANE}, format="4")
    with pytest.raises(DataError, match="MATLAB 5 to 7 is expected"):
        read_mat(path, "LabelMap")
    with pytest.raises(DataError, match=r"gone.mat: cannot be read: No such file"):
        read_mat(tmp_path / "gone.mat", "LabelMap")
    with pytest.raises(DataError, match="is a folder or a device"):
        read_mat(tmp_path, "LabelMap")


def test_a_small_file_that_unpacks_to_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savemat(tmp_path / "a.mat", {"LabelMap": np.zeros((500, 500), np.uint8)}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 1000
    monkeypatch.setattr(mat, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(DataError, match="truncated or unpacks to more than"):
        read_mat(tmp_path / "a.mat", "LabelMap")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_one_line_or_read_and_never_ends_the_process(
    tmp_path: Path, compressed: bool
) -> None:
    path = tmp_path / "a.mat"
    savemat(path, sbd(PLANE.astype(np.uint8)), do_compression=compressed)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(500):
        changed = bytearray(whole)
        if rng.random() < 0.3:
            changed = changed[: rng.integers(len(whole))]
        else:
            for place in rng.integers(len(whole), size=rng.integers(1, 5)):
                changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            found = read_mat(path, "GTcls", "Segmentation")
            assert found.ndim == 2
            # packed data carry a checksum
            assert not compressed or found.tolist() == PLANE.tolist()
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 150
    assert all(message.startswith(f"{path}: ") for message in refused)
    assert not any("\n" in message for message in refused)
