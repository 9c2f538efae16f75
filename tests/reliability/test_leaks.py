"""What a long run holds does not grow, and nothing is left of it (matrix row R34).

Members: resident memory, open descriptors and threads over steps, saves and validations, with a
loader worker and TensorBoard; shared memory and temporary folders after an end and after a
kill of a run of two processes; folders of living processes, of other programs, and links.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ENVIRONMENT, segtrain
from rows import amount

from segtrain.runtime.own_folder import HELD, own_folder, remove_left

LEAKS = Path(__file__).resolve().parents[1] / "leaks.py"
STEPS, SAVE_EVERY, EVAL_EVERY = amount((60, 10, 20), (300, 10, 40), (2000, 10, 40))
WARM = STEPS // 3
# KiB a step. An allocator takes and returns some 2 MB at a time, which the long form alone is long
# enough to tell from a leak of 1.
MOST = amount(50, 20, 1)
OTHERS = ("pymp-", "torchinductor_")  # a socket of Python's, a cache of torch's
RUN = [
    "model=unet",
    "model.width=4",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "dataset.train=16",
    "dataset.val=2",
    "train.device=cpu",
    "train.batch_size=2",
    "train.threads=1",
    "train.workers=1",
    "train.precision=fp32",
    f"train.steps={STEPS}",
    f"train.save_every={SAVE_EVERY}",
    f"train.eval_every={EVAL_EVERY}",
    "log.every=1",
    "log.progress=false",
]


def shared() -> list[str]:
    """Return what processes that are gone left in shared memory; torch names it by process."""
    names = [name for name in os.listdir("/dev/shm") if name.startswith("torch_")]
    return [name for name in names if not Path(f"/proc/{name.split('_')[1]}").exists()]


@pytest.mark.slow
@pytest.mark.row("R34")
def test_what_a_run_holds_does_not_grow_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    before = shared()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    subprocess.run(
        [sys.executable, LEAKS, tmp_path / "record", f"hydra.run.dir={tmp_path / 'run'}", *RUN],
        env={**ENVIRONMENT, "TMPDIR": str(temporary)},
        check=True,
        timeout=1200,
    )
    lines = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    assert [line[0] for line in lines] == list(range(1, STEPS + 1))
    steps, memory, files, threads = np.array(lines[WARM:]).T
    # The median of what each tenth of the steps adds: an allocator that takes some MB once, or
    # twice, is no leak.
    parts = [np.median(part) for part in np.array_split(memory, 10)]
    slope = np.median(np.diff(parts)) / (len(steps) / 10)
    assert slope < MOST, (slope, parts)
    assert len(set(threads)) == 1
    # A batch that a worker has just sent holds one more for a moment.
    assert np.median(files[: len(files) // 4]) == np.median(files[-len(files) // 4 :])
    assert max(files) - min(files) <= 2, sorted(set(files))
    assert not list(temporary.iterdir())
    assert set(shared()) <= set(before)


@pytest.mark.slow
@pytest.mark.row("R34")
def test_after_a_kill_the_next_start_leaves_nothing(tmp_path: Path) -> None:
    before = shared()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    run = tmp_path / "run"
    words = [
        *RUN,
        "train.steps=12",
        "train.processes=2",
        "train.save_every=2",
        "train.eval_every=12",
    ]
    killed = subprocess.Popen(segtrain("segtrain", f"hydra.run.dir={run}", *words), env=environment)
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step_*")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(temporary.glob("segtrain-*"))) == 2
    assert not list(temporary.glob("torchelastic_*"))
    subprocess.run(segtrain("segtrain", f"resume={run}"), env=environment, check=True, timeout=120)
    # What Python's multiprocessing leaves of a killed process is not ours to remove.
    assert not [path for path in temporary.iterdir() if not path.name.startswith(OTHERS)]
    assert set(shared()) <= set(before)


@pytest.mark.row("R34")
def test_only_folders_whose_process_is_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = tmp_path / "segtrain-left"
    mine.mkdir()
    (mine / HELD).touch()
    (mine / "config.yaml").touch()
    kept = tmp_path / "segtrain-of-somebody"
    kept.mkdir()
    (kept / "notes.txt").touch()  # nothing says that it is ours
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / HELD).touch()
    (tmp_path / "segtrain-link").symlink_to(outside)
    with own_folder() as living:
        assert not mine.exists()
        remove_left(tmp_path)
        with (living / HELD).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not living.exists()
    assert (kept / "notes.txt").exists()
    assert (outside / HELD).exists()
