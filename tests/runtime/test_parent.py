"""What workers are given: the environment of the start."""

from __future__ import annotations

import os

from segtrain.runtime import parent


def test_workers_get_the_environment_as_it_was_when_the_command_started(monkeypatch) -> None:
    monkeypatch.setattr(parent, "_environment", {})
    monkeypatch.setenv("BEFORE", "typed")
    parent.keep_environment()
    monkeypatch.setenv("BEFORE", "by a config")
    monkeypatch.setenv("PYTHONPATH", "/of/a/stranger")
    monkeypatch.delenv("HOME", raising=False)
    now = dict(os.environ)
    with parent.environment_of_start({"OURS": "1"}):
        assert os.environ["BEFORE"] == "typed"
        assert os.environ.get("PYTHONPATH") != "/of/a/stranger"
        assert os.environ["OURS"] == "1"
    assert dict(os.environ) == now
