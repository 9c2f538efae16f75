"""Checkpoints: the same bits back, which ones stay, what is said, and weights fitted to a model."""

import errno
import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch

from segtrain.checkpoints import manifest as manifest_module
from segtrain.checkpoints import match as match_module
from segtrain.checkpoints import reading, writing
from segtrain.errors import DiskError, InternalError, UserError
from segtrain.structures.class_rows import ClassRows


def payload(value: float = 1.0) -> dict:
    return {
        "model": {"w": torch.full((2, 3), value)},
        "optimizer": {"state": {0: {"m": torch.ones(2)}}, "lr": 0.1},
    }


def saved(folder: Path, *scores: float | None, keep: int = 99, keep_best: int = 1) -> list[Path]:
    """Steps 100, 200, ... with these scores."""
    return [
        writing.save(folder, 100 * (i + 1), payload(i), {"score": score}, keep, keep_best)
        for i, score in enumerate(scores)
    ]


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_dtype_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, math.nan, math.inf, 5e-324, 1 / 3], dtype=torch.float64)
    state = {
        str(t): odd.to(t) for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    state |= {
        "int": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
    }
    writing.save(
        tmp_path,
        7,
        {"model": state, "rest": {"lr": 0.1, "betas": (0.9, 0.999), "name": None}},
        {"a": [1.5]},
    )
    checkpoint = reading.latest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.meta) == (7, {"a": [1.5]})
    back = checkpoint.read("model")
    assert list(back) == list(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert back[key].view(torch.uint8).tolist() == value.view(torch.uint8).tolist(), key
    assert checkpoint.read("rest") == {"lr": 0.1, "betas": (0.9, 0.999), "name": None}


def test_the_manifest_lists_size_and_sha256_of_each_file(tmp_path: Path) -> None:
    import hashlib

    (path,) = saved(tmp_path, 0.5)
    assert path.name == "step_00000100"
    assert steps(path) == [
        "manifest.json",
        "model.pt",
        "optimizer.pt",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("model.pt", "optimizer.pt"):
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert (manifest["format"], manifest["step"], manifest["meta"]) == (1, 100, {"score": 0.5})


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    saved(tmp_path, 0.1, 0.9, 0.3, 0.9, 0.2, 0.4, keep=2)
    # 200 and 400 tie: the newer
    assert steps(tmp_path) == [
        "step_00000400",
        "step_00000500",
        "step_00000600",
    ]
    best = reading.best(tmp_path)
    latest = reading.latest(tmp_path)
    assert best is not None
    assert best.step == 400
    assert latest is not None
    assert latest.step == 600


@pytest.mark.parametrize(
    ("keep", "keep_best", "scores", "kept"),
    [
        (1, 2, (0.5, 0.9, 0.3, 0.7, 0.1), {200, 400, 500}),
        (2, 3, (0.5, 0.9, 0.3, 0.7, 0.1), {100, 200, 400, 500}),
        (1, 3, (0.1, 0.2, 0.3, 0.4, 0.5), {300, 400, 500}),  # the newest is one of the best
        (1, 2, (0.9, 0.9, 0.9, 0.9, 0.1), {300, 400, 500}),  # of equal ones the newest
        (1, 2, (-0.5, math.nan, -0.2, None, None), {100, 300, 500}),  # no score is never best
        (1, 2, (math.nan, None, math.nan, None, None), {500}),
        (1, 9, (0.1, None, 0.2, math.nan, 0.3), {100, 300, 500}),  # fewer than may be kept
    ],
)
def test_the_best_k_stay_beside_the_newest(
    tmp_path: Path, keep: int, keep_best: int, scores: tuple, kept: set[int]
) -> None:
    saved(tmp_path, *scores, keep=keep, keep_best=keep_best)
    assert {int(name.removeprefix("step_")) for name in steps(tmp_path)} == kept


def test_another_number_of_best_ones_holds_from_the_next_save_on(tmp_path: Path) -> None:
    saved(tmp_path, 0.5, 0.9, 0.3, 0.7, keep=1, keep_best=3)
    assert len(steps(tmp_path)) == 3
    writing.save(tmp_path, 500, payload(), {"score": 0.1}, keep=1, keep_best=1)
    assert steps(tmp_path) == ["step_00000200", "step_00000500"]
    writing.save(tmp_path, 600, payload(), {"score": 0.2}, keep=1, keep_best=2)
    assert steps(tmp_path) == ["step_00000200", "step_00000600"]  # 500 had been dropped already


def test_a_damaged_best_one_stays_and_takes_no_place(tmp_path: Path) -> None:
    best, *_ = saved(tmp_path, 0.9, 0.5, 0.7, keep=9)
    (best / "model.pt").write_bytes(b"damaged")
    writing.save(tmp_path, 400, payload(), {"score": 0.1}, keep=1, keep_best=2)
    assert len(steps(tmp_path)) == 4
    writing.save(tmp_path, 500, payload(), {"score": 0.1}, keep=1, keep_best=2)
    assert [name[-3:] for name in steps(tmp_path)] == ["100", "200", "300", "500"]
    found = reading.best(tmp_path)
    assert found is not None
    assert found.step == 300


def test_a_score_of_nan_or_none_is_never_best(tmp_path: Path) -> None:
    saved(tmp_path, None, math.nan)
    assert reading.best(tmp_path) is None
    saved(tmp_path, 0.1, None, math.nan)
    best = reading.best(tmp_path)
    assert best is not None
    assert best.step == 100


def test_the_one_just_saved_stays_when_newer_steps_exist(tmp_path: Path) -> None:
    saved(tmp_path, 0.1, 0.2, 0.3, 0.4)
    writing.save(tmp_path, 150, payload(), {}, keep=1)
    assert steps(tmp_path) == ["step_00000150", "step_00000400"]


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    saved(tmp_path, 0.1)
    writing.save(tmp_path, 100, payload(42.0), {"score": 0.2})
    assert steps(tmp_path) == ["step_00000100"]
    assert reading.find(tmp_path, "latest").read("model")["w"][0, 0] == 42.0


def test_a_damaged_checkpoint_is_named_skipped_and_never_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = saved(tmp_path, 0.1, 0.2, 0.3)
    (paths[2] / "model.pt").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "segtrain"):
        checkpoint = reading.latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 200
    assert (
        "step_00000300: damaged checkpoint skipped: model.pt has 0 bytes instead of" in caplog.text
    )
    writing.save(tmp_path, 300, payload(), {}, keep=1)
    writing.save(tmp_path, 400, payload(), {}, keep=1)
    # 200 is best, .old-1 damaged
    assert steps(tmp_path) == [
        "step_00000200",
        "step_00000300.old-1",
        "step_00000400",
    ]


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_00000050").mkdir()
    (tmp_path / ".tmp-step_00000050" / "model.pt").write_bytes(b"half")
    (tmp_path / ".tmp-file").write_bytes(b"")
    saved(tmp_path, None)
    assert steps(tmp_path) == ["step_00000100"]


def test_everything_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync = os.fsync
    rename = os.rename

    def log_fsync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def log_rename(a: Path, b: Path) -> None:
        events.append(f"rename {Path(b).name}")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", log_rename)
    saved(tmp_path, None)
    files = ["sync model.pt", "sync optimizer.pt", "sync manifest.json", "sync .tmp-step_00000100"]
    assert events == [*files, "rename step_00000100", f"sync {tmp_path.name}"]


def test_a_failing_fsync_fails_the_save_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 0.1)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(DiskError, match="step 200 was not saved: Input/output error"):
            writing.save(tmp_path, 200, payload(), {})
    assert steps(tmp_path) == ["step_00000100"]
    assert reading.find(tmp_path, "latest").read("model")["w"][0, 0] == 0.0


def test_a_full_disk_names_path_need_and_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 0.1)
    real_open = Path.open

    def full(self: Path, mode: str = "r", **kwargs: int) -> object:
        return (
            real_open(Path("/dev/full"), "wb")
            if self.name == "model.pt" and "x" in mode
            else real_open(self, mode)
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(DiskError) as caught:
            writing.save(tmp_path, 200, {"model": {"w": torch.zeros(1000, 1000)}}, {})
    text = str(caught.value)
    assert text.startswith(
        f"{tmp_path}: step 200 was not saved: No space left on device; "
        "it needs about 4000000 bytes, "
    )
    assert "bytes are free" in text
    assert "\n" not in text
    assert caught.value.exit_code == 74
    assert steps(tmp_path) == ["step_00000100"]


def test_a_file_in_place_of_the_folder_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(DiskError, match="checkpoints: step 100 was not saved"):
        saved(tmp_path / "checkpoints", 0.1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_what_a_safe_load_would_refuse_is_refused_at_the_save(tmp_path: Path) -> None:
    import numpy as np

    for value in (np.float64(1.0), {1, 2}, print, np.zeros(2)):
        with pytest.raises(InternalError, match=r"checkpoint entry model\.a\[0\] is a "):
            writing.save(tmp_path, 1, {"model": {"a": [value]}}, {})
    with pytest.raises(InternalError, match="a name has letters"):
        writing.save(tmp_path, 1, {"../x": {}}, {})
    assert reading.latest(tmp_path) is None


def test_find_takes_a_run_a_folder_a_step_and_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    paths = saved(folder, 0.1, 0.9, 0.3)
    assert [reading.find(tmp_path / "run", which).step for which in ("best", "latest")] == [
        200,
        300,
    ]
    assert [reading.find(folder, which).step for which in ("best", "latest")] == [200, 300]
    assert reading.find(paths[0], "best").step == 100
    assert reading.find(paths[0] / "model.pt", "best").step == 100
    assert reading.find(paths[0] / "manifest.json", "best").step == 100
    copied = paths[0].rename(tmp_path / "my favourite")
    assert reading.find(copied, "best").step == 100


def test_best_is_the_latest_where_no_checkpoint_has_a_score(tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    assert reading.find(tmp_path, "best").step == 200


def test_what_cannot_be_found_is_explained_in_one_line(tmp_path: Path) -> None:
    (path,) = saved(tmp_path / "run1" / "checkpoints", 0.1)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "run2": rf"run2: does not exist\. Did you mean `{tmp_path / 'run1'}`\?",
        tmp_path / "notes.txt": "notes.txt: a foreign file",
        tmp_path / "empty": "empty: holds no whole checkpoint",
    }
    for given, text in cases.items():
        with pytest.raises(UserError, match=text):
            reading.find(given, "best")
    checkpoint = reading.find(path, "best")
    with pytest.raises(
        UserError, match=r"holds no `modle`, only model, optimizer\. Did you mean `model`\?"
    ):
        checkpoint.read("modle")
    (path / "model.pt").write_bytes(b"x")
    for given in (path, path / "optimizer.pt"):
        with pytest.raises(
            UserError, match=r"damaged checkpoint \(model.pt has 1 bytes instead of"
        ):
            reading.find(given, "best")
    with pytest.raises(UserError, match="damaged checkpoint"):
        checkpoint.read("model")  # damaged after it was checked


@pytest.mark.row("R30")
def test_a_newer_format_is_a_user_error_and_is_never_passed_over(tmp_path: Path) -> None:
    paths = saved(tmp_path, 0.1, 0.2)
    body = json.loads((paths[1] / "manifest.json").read_text())
    body.pop("seal")
    (paths[1] / "manifest.json").write_bytes(manifest_module.encode({**body, "format": 2}))
    for call in (reading.latest, reading.best, reading.find):
        with pytest.raises(
            UserError,
            match="step_00000200: has format 2, this segtrain reads up to 1; update segtrain",
        ):
            call(tmp_path)
    saved(tmp_path / "other", 0.1)


@pytest.mark.row("R30")
def test_a_checkpoint_of_a_format_1_run_is_read_by_its_text_alone(tmp_path: Path) -> None:
    """Written by hand, so that a change of the rule for manifests cannot go unseen."""
    import hashlib

    path = tmp_path / "step_00000005"
    path.mkdir()
    torch.save({"w": torch.arange(3)}, path / "model.pt")
    data = (path / "model.pt").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    record = f'"model.pt": {{\n   "sha256": "{sha256}",\n   "size": {len(data)}\n  }}'
    text = '{\n "files": {\n  %s\n },\n "format": 1,\n "meta": {},\n%s "step": 5\n}'
    seal = hashlib.sha256((text % (record, "")).encode()).hexdigest()
    (path / "manifest.json").write_text(text % (record, f' "seal": "{seal}",\n'))
    assert reading.find(tmp_path, "best").read("model")["w"].tolist() == [0, 1, 2]


# ---- weights


@pytest.mark.row("R31")
def test_a_model_takes_all_of_a_state_or_nothing(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.full_like(value, 9.0) for key, value in before.items()}
    wrong = {**state, "1.weight": torch.zeros(5, 3), "extra": torch.zeros(1)}
    del wrong["1.bias"]
    with pytest.raises(UserError) as caught:
        match_module.load_exactly(model, wrong, "run1")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("run1: does not fit the model")
    assert lines[0].endswith("2 tensors fit, 3 differ")
    assert lines[1:] == [
        "  0: 2 of 2 tensors",
        "  1: 0 of 2 tensors",
        "  1.weight: model (4, 3), file (5, 3)",
        "  1.bias: not in the file",
        "  extra: not in the model",
    ]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    match_module.load_exactly(model, state, "run1")
    assert all(bool((value == 9).all()) for value in model.state_dict().values())


def test_compare_sorts_every_key_into_one_place() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    match = match_module.compare(
        wanted, {"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)}
    )
    assert (match.loaded, match.reshaped, match.new, match.unused) == (
        ["a"],
        {"b": ((3,), (4,))},
        ["c"],
        ["d"],
    )
    assert not match.exact
    assert match_module.compare(wanted, wanted).exact


def test_a_classifier_is_matched_class_by_class_by_name() -> None:
    model = {
        "stem": torch.zeros(4),
        "head": torch.full((3, 2), -1.0),
        "other": torch.full((5,), -1.0),
    }
    loaded = {
        "stem": torch.ones(4),
        "head": torch.arange(8.0).reshape(4, 2),
        "other": torch.zeros(6),
    }
    state, match = match_module.init_from(
        model, loaded, ["car", "tree", "road"], ["road", "sky", "car", "dog"]
    )
    assert state["stem"].tolist() == [1, 1, 1, 1]
    # car was row 2, tree is new, road was row 0
    assert state["head"].tolist() == [
        [4, 5],
        [-1, -1],
        [0, 1],
    ]
    assert state["other"].tolist() == [-1] * 5
    assert match.rows == {"head": (2, 3)}
    assert match.reshaped == {"other": ((5,), (6,))}
    assert match.loaded == ["stem"]
    assert match.table().splitlines() == [
        "1 tensors fit, 2 differ",
        "  stem: 1 of 1 tensors",
        "  head: 1 of 1 tensors",
        "  other: 0 of 1 tensors",
        "  head: 2 of 3 classes found by name",
        "  other: model (5,), file (6,)",
    ]
    assert model["head"][0, 0] == -1  # the model's own tensors are not written


HEADS = {"head": ClassRows(), "boxes": ClassRows(background="first")}


def test_the_same_classes_in_another_order_are_taken_by_name() -> None:
    """Shapes are equal, so only the layout tells rows from channels; `stem` has three channels."""
    model = {"stem.w": torch.zeros(3), "head.w": torch.zeros(3, 1), "boxes.b": torch.zeros(8)}
    loaded = {
        "stem.w": torch.tensor([1.0, 2.0, 3.0]),
        "head.w": torch.tensor([[10.0], [20.0], [30.0]]),
        "boxes.b": torch.arange(8.0),
    }
    names = ["c", "a", "b"]
    state, match = match_module.init_from(model, loaded, names, ["a", "b", "c"], HEADS)
    assert state["stem.w"].tolist() == [1, 2, 3]
    assert state["head.w"].tolist() == [[30], [10], [20]]
    assert state["boxes.b"].tolist() == [0, 1, 6, 7, 2, 3, 4, 5]  # two rows each, background first
    assert match.loaded == ["stem.w"]
    assert match.rows == {"head.w": (3, 3), "boxes.b": (3, 3)}
    assert match.doubt() is None
    assert match.table().splitlines() == [
        "1 tensors fit, 2 differ",
        "  stem: 1 of 1 tensors",
        "  head: 1 of 1 tensors",
        "  boxes: 1 of 1 tensors",
        "  head.w: 3 of 3 classes found by name",
        "  boxes.b: 3 of 3 classes found by name",
    ]
    state, match = match_module.init_from(model, loaded, names, names, HEADS)
    assert all(torch.equal(state[key], loaded[key]) for key in loaded)
    assert match.exact


def test_other_classes_of_the_same_number_keep_the_models_rows() -> None:
    model = {"stem.w": torch.zeros(3), "head.w": torch.full((3, 1), -1.0)}
    loaded = {"stem.w": torch.ones(3), "head.w": torch.ones(3, 1)}
    layout = {"head": ClassRows()}
    state, match = match_module.init_from(model, loaded, ["a", "b", "c"], ["x", "y", "z"], layout)
    assert state["head.w"].tolist() == [[-1], [-1], [-1]]
    assert match.parts() == {"stem": (1, 1), "head": (0, 1)}
    assert "  head.w: 0 of 3 classes found by name" in match.table().splitlines()
    del model["stem.w"], loaded["stem.w"]
    with pytest.raises(UserError, match="none of the 1 loaded tensors fits"):
        match_module.init_from(model, loaded, ["a", "b", "c"], ["x", "y", "z"], layout)


def test_a_deconvolution_of_scores_has_classes_in_two_dimensions() -> None:
    layout = {"up": ClassRows(dims=(0, 1))}
    model = {"up.weight": torch.zeros(3, 3, 1)}
    loaded = {"up.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None]}
    state, match = match_module.init_from(model, loaded, ["b", "new", "a"], ["a", "b"], layout)
    assert state["up.weight"][:, :, 0].tolist() == [[4, 0, 3], [0, 0, 0], [2, 0, 1]]
    assert match.rows == {"up.weight": (2, 3)}


def test_a_file_may_hold_its_classes_otherwise() -> None:
    """Background comes first here, last in one file, and not at all in another."""
    model = {"score.bias": torch.full((3,), -1.0)}
    ours = {"score": ClassRows(background="first")}
    names = ["a", "b"]
    for theirs, values, expected in (
        (ClassRows(background="last"), [1.0, 2.0, 0.0], [0, 1, 2]),
        (ClassRows(), [1.0, 2.0], [-1, 1, 2]),
        (ClassRows(background="first"), [0.0, 1.0, 2.0], [0, 1, 2]),
    ):
        state, match = match_module.init_from(
            model, {"score.bias": torch.tensor(values)}, names, names, ours, {"score": theirs}
        )
        assert state["score.bias"].tolist() == expected
        assert not match.reshaped


def test_a_file_without_names_keeps_its_order_and_says_so() -> None:
    model = {"stem.w": torch.zeros(3), "head.w": torch.zeros(3, 1)}
    loaded = {"stem.w": torch.ones(3), "head.w": torch.tensor([[1.0], [2.0], [3.0]])}
    layout = {"head": ClassRows()}
    state, match = match_module.init_from(model, loaded, ["c", "a", "b"], [], layout)
    assert state["head.w"].tolist() == [[1], [2], [3]]
    assert match.unnamed == ["head.w"]
    assert match.table().splitlines()[-1] == (
        "  the file names no classes, so these have its order of them: head.w"
    )


def test_rows_that_a_class_has_another_number_of_are_named_and_not_taken() -> None:
    """Masks of the file do not depend on the class: one row in all."""
    model = {"stem.w": torch.zeros(1), "head.w": torch.full((3, 1), -1.0)}
    loaded = {"stem.w": torch.ones(1), "head.w": torch.ones(1, 1)}
    names = ["a", "b", "c"]
    state, match = match_module.init_from(
        model, loaded, names, ["b", "a", "c"], {"head": ClassRows()}
    )
    assert state["head.w"].tolist() == [[-1], [-1], [-1]]
    assert match.reshaped == {"head.w": ((3, 1), (1, 1))}


def test_a_model_that_does_not_say_is_doubted_where_numbers_of_classes_are_equal() -> None:
    model = {"stem.w": torch.zeros(2), "head.w": torch.zeros(3, 1), "head.b": torch.zeros(3)}
    loaded = {key: value + 1 for key, value in model.items()}
    for theirs in (["b", "a", "c"], ["x", "y", "z"]):
        state, match = match_module.init_from(model, loaded, ["a", "b", "c"], theirs)
        assert state["head.w"].tolist() == [[1], [1], [1]]
        assert match.doubt() == (
            "the classes have other names or another order, and the model does not say which of "
            "its tensors have rows for them (class_rows): head.w, head.b have as many rows, and "
            "were taken as they are"
        )
    for theirs in (["a", "b", "c"], [], ["x", "y"]):
        assert match_module.init_from(model, loaded, ["a", "b", "c"], theirs)[1].doubt() is None


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"haed": ClassRows()}, r"no tensor or layer `haed`\. Did you mean `head`\?"),
        ({"head": ClassRows(background="last")}, r"head\.w of shape \(3, 1\) .* 4 equal groups"),
        ({"head.w": ClassRows(dims=(0, 1))}, r"head\.w of shape \(3, 1\) .* dimension 0 and 1"),
        ({"head.w": ClassRows(dims=(2,))}, r"head\.w of shape \(3, 1\) .* dimension 2"),
    ],
)
def test_a_layout_that_is_not_the_models_is_refused(
    layout: dict[str, ClassRows], words: str
) -> None:
    state = {"head.w": torch.zeros(3, 1)}
    with pytest.raises(UserError, match=words):
        match_module.init_from(state, state, ["a", "b", "c"], [], layout)


def test_weights_of_which_none_fits_are_refused() -> None:
    with pytest.raises(
        UserError, match="none of the 1 loaded tensors fits the model; first keys: the file has 'b'"
    ):
        match_module.init_from({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, ["x"], ["x"])


def test_weights_come_from_a_run_with_its_class_names(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    average = torch.optim.swa_utils.AveragedModel(network)
    torch.nn.init.constant_(average.module.weight, 3.0)
    meta = {"class_names": ["a"], "score": 1.0}
    folder = tmp_path / "run" / "checkpoints"
    path = writing.save(
        folder, 1, {"model": network.state_dict(), "ema": average.state_dict()}, meta
    )
    state, names, _ = reading.weights_of(tmp_path / "run")
    assert names == ["a"]
    assert sorted(state) == ["bias", "weight"]
    assert state["weight"].tolist() == [[3.0, 3.0]]
    bare = (path / "model.pt").rename(tmp_path / "bare.pt")
    assert reading.is_bare(bare)
    assert not reading.is_bare(path / "ema.pt")  # of a checkpoint, whose manifest lies beside it


def test_a_file_with_little_of_the_backbone_is_refused_with_the_nearest_keys() -> None:
    wanted = {"backbone.a.weight": torch.zeros(9), "backbone.b.weight": torch.zeros(1)}
    wanted |= {"backbone.num_batches_tracked": torch.zeros(()), "head.weight": torch.zeros(100)}
    enough = {"backbone.a.weight": torch.ones(9)}
    match = match_module.compare(wanted, enough)
    match_module.require_backbone(wanted, match, enough, "file")
    little = {
        "trunk.a.weight": torch.ones(9),
        "backbone.b.weight": torch.ones(1),
        "backbone.num_batches_tracked": torch.ones(()),
        "head.weight": torch.ones(100),
    }
    match = match_module.compare(wanted, little)
    line = r"file: has 10% of the backbone's.*backbone\.a\.weight \(nearest.*: backbone\.b\.weight"
    with pytest.raises(UserError, match=line):
        match_module.require_backbone(wanted, match, little, "file")
