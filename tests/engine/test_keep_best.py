"""`train.keep_best`: the best checkpoints by the monitored value stay, and are named."""

from __future__ import annotations

import json
from pathlib import Path

from commandline import done
from test_memory import RUN

from segtrain.checkpoints import reading

BEST = ("train.monitor=loss", "train.monitor_mode=min", "train.eval_every=1", "train.keep=1")


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (folder / "checkpoints").glob("step_*"))


def test_the_best_ones_by_the_monitor_stay_and_are_named_with_their_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*RUN, *BEST, "train.steps=6", "train.keep_best=3", "optimizer.lr=0.3"]
    out = done("segtrain", f"hydra.run.dir={run}", *words)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if line["phase"] == "val"}
    best = sorted(losses, key=lambda step: losses[step])[:3]
    assert kept(run) == sorted({*best, 6})
    told = ", ".join(f"{losses[step]:.4f} at step {step}" for step in best)
    assert f"\nkept   loss {told}\n" in out
    found = reading.find(run, "best")
    assert found.step == best[0]
    second = run / "checkpoints" / f"step_{best[1]:08d}"
    done("segeval", f"checkpoint={second}", f"eval.output={tmp_path / 'scores'}", "eval.worst=0")
    protocol = json.loads((tmp_path / "scores" / "metrics.json").read_text())["protocol"]
    assert protocol["step"] == best[1]
