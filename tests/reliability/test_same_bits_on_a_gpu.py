"""On CUDA with train.deterministic=true the same command gives the same bits (row R28).

Five models whose backward passes hold the operations that CUDA does by atomic additions otherwise:
bilinear resizing, pooling to bins, unpooling, regions of interest. Not yet run on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import done
from golden import losses, runs

STEPS = 50
MODELS = ("unet", "pspnet", "deeplabv3plus", "encnet", "mask_rcnn")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.row("R28")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_deterministic_run_on_a_gpu_gives_the_same_bits_twice(
    model: str, precision: str, tmp_path: Path
) -> None:
    runs.write_coco(tmp_path / "data")
    own = [word for word in losses.overrides_of(model) if not word.startswith("train.device")]
    words = [word.replace(runs.DATA, str(tmp_path / "data")) for word in own]
    words += [f"train.steps={STEPS}", "train.device=cuda", f"train.precision={precision}"]
    last = {word.partition("=")[0]: word for word in [*words, "train.deterministic=true"]}
    found = []
    for number in (1, 2):
        run = tmp_path / f"{number}"
        # A warning, such as of a kernel that is not deterministic, would stand on stderr.
        done("segtrain", *last.values(), f"hydra.run.dir={run}")
        found.append((runs.tensors_of(run), runs.numbers_of(run)))
    (tensors, numbers), (again, numbers_again) = found
    assert numbers == numbers_again
    for part in ("model", "optimizer"):
        runs_bits = [{k: said(v) for k, v in vars(each)[part].items()} for each in (tensors, again)]
        assert runs_bits[0] == runs_bits[1]


def said(value: object) -> object:
    """Return a tensor's hash, or those of a state's tensors."""
    return (
        {k: runs.said(v) for k, v in value.items()} if isinstance(value, dict) else runs.said(value)
    )
