"""What all tests share: real samples, the commands as a user starts them, and GPU tests that skip
without a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest_plugins = ["rows"]

# Child processes get these too: two threads are enough for tests, and the augmentation library must
# not phone home.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Under nohup, and in the background of a script, every child would ignore signals that tests send.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device.

    Torch is imported only if there are any.
    """
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder SEGTRAIN_DATA with real samples (camvid/, voc2012/ ...); skips without one."""
    value = os.environ.get("SEGTRAIN_DATA", "")
    if not value or not Path(value).is_dir():
        pytest.skip("set SEGTRAIN_DATA to a folder with camvid/, voc2012/ ... to run this")
    return Path(value)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a command as a user would: `command("segtrain", "model=fcn", cwd=..., env={...},
    timeout=60)`.

    The folder defaults to the test's own, `env` adds to the environment. Output is captured as
    text.
    """

    def run(
        name: str,
        *args: str,
        cwd: Path = tmp_path,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        start = [
            sys.executable,
            "-c",
            f"import sys; from segtrain.commands.main import {name}; sys.exit({name}())",
            *args,
        ]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        full = {**os.environ, "PYTHONPATH": path, **(env or {})}
        return subprocess.run(
            start, cwd=cwd, env=full, timeout=timeout, capture_output=True, text=True
        )

    return run
