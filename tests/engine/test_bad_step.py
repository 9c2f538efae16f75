"""The step that a run ended on, kept in `bad_step_N`, and `segtrain replay=`.

Members of the kind: each number that is not finite, in each precision; what does not happen again;
a second bad step; a full disk; a folder of somebody's own; hostile folders (pickles, links, tensors
of other types and shapes, labels of more classes); words that do not belong to the command; and a
real run of two processes, by the real commands.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from poison import Case, ended, installed
from rows import amount
from run_folders import assert_same_bits

from segtrain.checkpoints import manifest, reading, writing
from segtrain.commands.main import run as typed
from segtrain.commands.replay import replay
from segtrain.engine import bad_step
from segtrain.engine import train as loop
from segtrain.errors import DiskError, InternalError, UserError
from segtrain.runtime.distributed import World

CASES = [
    Case("gradient nan", "bf16"),
    *(Case(kind) for kind in ("loss nan", "loss inf", "gradient huge", "input inf")),
    *(Case(kind, "fp16") for kind in ("loss nan", "input inf")),
]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """The bad step that a run left, and the parts to compute it again."""
    case = Case("gradient nan")
    with installed(case):
        ended(case, tmp_path / "run", World())
        yield tmp_path / "run" / "bad_step_3"


@pytest.mark.row("R16")
@pytest.mark.parametrize("case", amount(CASES[:1], CASES, CASES), ids=lambda case: case.name)
def test_what_a_run_ended_on_is_kept_and_happens_again(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    with installed(case) as blamed:
        told = ended(case, run, World())
        capsys.readouterr()
        replay(run / "bad_step_3", [])
    assert told.endswith(f"; compute it again: segtrain replay={run / 'bad_step_3'}")
    before = reading.find(run / "checkpoints" / "step_00000002")
    weights = [found.read("model") for found in (before, reading.find(run / "bad_step_3"))]
    assert_same_bits(*weights)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "reproduced"
    (whole,) = [line for line in lines if line.endswith("  " + ", ".join(blamed))]
    assert re.search("nan|inf", whole)
    first, second = (line for line in lines if line.endswith(tuple(f"  {name}" for name in blamed)))
    single = {line.split()[-1]: line for line in (first, second) if "," not in line}
    if blamed[0] in single:
        assert not re.search("nan|inf", single[blamed[0]])
    assert re.search("nan|inf", single[blamed[1]])
    module = "backbone.0 (Conv2d)" if case.kind == "input inf" else "none"
    assert f"first output that is not finite: {module}" in lines


def test_what_does_not_happen_again_is_said_with_another_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop.update

    def with_a_bit_flipped(run, parts, state, *others):
        hook = state.network.head.weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return update(run, parts, state, *others)
        finally:
            hook.remove()

    monkeypatch.setattr(loop, "update", with_a_bit_flipped)
    with installed(Case("none")):
        ended(Case("none"), tmp_path / "run", World())
        with pytest.raises(InternalError, match="not reproduced, every loss and gradient is fin"):
            replay(tmp_path / "run" / "bad_step_1", [])


def test_one_bad_step_is_kept_and_what_is_not_ours_stays(kept: Path) -> None:
    own = kept.with_name("bad_step_of_mine")
    own.mkdir()
    (own / "notes").write_text("mine")
    shares = [[bad_step.plain(batch) for batch in share] for share in _batches(kept)]
    network = torch.nn.Linear(2, 1)
    written = bad_step.write(kept.parent, 7, network, shares, {})
    assert written == kept.with_name("bad_step_7")
    assert sorted(path.name for path in kept.parent.glob("bad_step_*")) == [
        "bad_step_7",
        "bad_step_of_mine",
    ]
    assert (own / "notes").read_text() == "mine"


def _batches(folder: Path) -> list[list[Any]]:
    return bad_step.batches(reading.find(folder), 2)


def test_a_full_disk_does_not_hide_what_was_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> Path:
        raise DiskError("no room")

    monkeypatch.setattr(writing, "save_as", full)
    with installed(Case("loss nan")):
        told = ended(Case("loss nan"), tmp_path / "run", World())
    assert told.startswith("70 step 3: the loss is not finite (nan) on images ")
    assert "compute it again" not in told
    log = (tmp_path / "run" / "train.log").read_text()
    assert "warn   bad_step_3: no room; the run goes on without it" in log


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _resealed(folder: Path, content: bytes) -> None:
    """Put another batch into a folder, and seal it again as a stranger can."""
    import hashlib

    (folder / "batch.pt").write_bytes(content)
    body = json.loads((folder / "manifest.json").read_text())
    del body["seal"]
    digest = hashlib.sha256(content).hexdigest()
    body["files"]["batch.pt"] = {"size": len(content), "sha256": digest}
    (folder / "manifest.json").write_bytes(manifest.encode(body))


def _saved(value: object, place: Path) -> bytes:
    torch.save(value, place)
    return place.read_bytes()


def test_a_batch_of_a_stranger_is_checked_and_runs_nothing(kept: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    batch = bad_step.plain(_batches(kept)[0][0])
    wrong: list[object] = [
        [],
        [[]],
        7,
        [[{}]],
        [[{**batch, "ids": ["a"]}]],
        [[{**batch, "images": batch["images"].float()}]],
        [[{**batch, "images": batch["images"][:, :2]}]],
        [[{**batch, "sizes": batch["sizes"] * 1000}]],
        [[{**batch, "masks": batch["masks"] + 2}]],
        [[{**batch, "masks": batch["masks"][:, :3]}]],
        [[{**batch, "masks": None}]],
        [[{**batch, "inside": batch["masks"]}]],
        [[{**batch, "instances": [{}]}]],
        [[{**batch, "masks": None, "instances": []}]],
    ]
    contents = [_saved(value, tmp_path / "saved") for value in wrong]
    contents.append(pickle.dumps(Canary(canary)))
    contents.append(_saved([Canary(canary)], tmp_path / "saved"))
    for content in contents:
        _resealed(kept, content)
        with pytest.raises(UserError) as caught:
            _batches(kept)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a file of plain tensors"):
        replay(kept, [])
    assert not canary.exists()


def test_links_in_a_bad_step_are_not_followed(kept: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (kept / "batch.pt").rename(outside)
    (kept / "batch.pt").symlink_to(outside)
    with pytest.raises(UserError, match="damaged checkpoint"):
        replay(kept, [])
    (kept / "batch.pt").unlink()
    os.mkfifo(kept / "batch.pt")
    with pytest.raises(UserError, match=r"batch\.pt is not a regular file"):
        replay(kept, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replay="], "write replay=RUN/bad_step_N"),
        (["replay=run", "train.steps=3"], "train.steps=3: replay= takes train.device, train.pre"),
        (["replay=run", "-m"], "replay=: stands alone"),
        (["replay=nowhere"], "nowhere: does not exist"),
    ],
)
def test_a_slip_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        typed(words)


def test_a_checkpoint_without_a_batch_is_no_bad_step(kept: Path) -> None:
    with pytest.raises(UserError, match="holds no batch; name the folder bad_step_N"):
        replay(kept.parent, [])


# Two learning rates: weights that are too large, or a gradient that is.
@pytest.mark.row("R16")
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_real_run_leaves_a_step_that_its_command_computes_again(
    count: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["optimizer=sgd", "optimizer.lr=1e30", "train.batch_size=4", "train.steps=5"]
    words += ["dataset.size=[64,64]", "dataset.crop=[64,64]", "train.precision=fp32", "writer=[]"]
    words += ["dataset.train=32", "dataset.val=2", "train.threads=1", "train.eval_every=5"]
    words += ["log.progress=false"]
    words += [f"train.processes={count}", "train.device=cpu", f"hydra.run.dir={run}"]
    first = ran(tmp_path, *words)
    assert first.returncode == 70, first.stderr
    assert first.stderr.count("\n") == 1
    (folder,) = run.glob("bad_step_*")
    assert first.stderr.endswith(f"compute it again: segtrain replay={folder}\n")
    again = ran(tmp_path, f"replay={folder}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith("reproduced\n")
    assert ("\n1   " in again.stdout) == (count == 2)


def ran(place: Path, *words: str) -> subprocess.CompletedProcess:
    """Run `segtrain WORDS` with its temporary files in `place`."""
    return subprocess.run(
        processes.segtrain("segtrain", *words),
        env={**processes.ENVIRONMENT, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
