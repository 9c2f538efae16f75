"""Golden losses: thirty steps of each of the twelve systems in fp32 and in bf16.

    python tests/golden/losses.py write|compare [NAME...]

tests/golden/losses/SYSTEM.json holds the config of a small network of the system, stored whole and
resolved as in runs.py, where the losses were made, and for each precision the loss of every step as
`float.hex()`. NAME is SYSTEM.PRECISION. `write` trains with the config that is stored; it composes
one only for a new name.

Same machine type and version of torch: every loss must be equal to the bit. Elsewhere: the loss of
the first step to 1e-6 relative in fp32, and to 1e-2 in bf16, whose products have eight bits.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden import runs

STORED = Path(__file__).resolve().parent / "losses"
STEPS = 30
PRECISIONS = {"fp32": runs.LOSS_TOLERANCE, "bf16": 1e-2}  # relative, elsewhere
# For every system: a validation at the end alone, and batches of two.
SMALL = [
    f"train.steps={STEPS}",
    f"train.eval_every={STEPS}",
    "train.accumulate=1",
    "train.batch_size=2",
]
MAPS = ["dataset.size=[32,32]", "dataset.crop=[32,32]"]
OBJECTS = ["dataset.crop=[64,64]", "augment.shorter=[48,64]", "augment.longest=64"]
OBJECTS += ["model.width=32", "model.proposals=[60,40]", "model.regions=16"]
# A network of each system whose weights are random and whose steps take a moment; DeconvNet knows
# inputs of 224 pixels alone, so it makes four of them.
SYSTEMS: dict[str, list[str]] = {
    "fcn": ["model=fcn_resnet50", "model.backbone=resnet18", *runs.ADAMW, runs.SCRATCH],
    "parsenet": ["model=parsenet_vgg11", *runs.ADAMW],
    "deconvnet": [
        "model=deconvnet_vgg11",
        "model.code=16",
        *runs.ADAMW,
        "train.steps=4",
        "inference.boxes.count=1",
    ],
    "unet": ["model=unet", "model.width=8", *runs.SGD],
    "fpn": ["model=fpn_r18", *runs.ADAMW, *runs.MASKS],
    "pspnet": ["model=pspnet_r18", *runs.ADAMW],
    "mask_rcnn": ["model=mask_rcnn_r18", *runs.ADAMW],
    "deeplab": ["model=deeplab_r18", *runs.SGD],
    "deeplabv3": ["model=deeplabv3_r18", *runs.ADAMW],
    "deeplabv3plus": ["model=deeplabv3plus_r18", *runs.SGD],
    "panet": ["model=panet_r18", *runs.ADAMW],
    "encnet": ["model=encnet_r18", *runs.ADAMW],
}
WITH_OBJECTS = ("fpn", "mask_rcnn", "panet")
NAMES = [f"{system}.{precision}" for precision in PRECISIONS for system in SYSTEMS]


def overrides_of(system: str) -> list[str]:
    """The settings of a system's run."""
    own = [*runs.OBJECTS, *OBJECTS] if system in WITH_OBJECTS else [*runs.SHAPES, *MAPS]
    if system == "fpn":  # its own width is small, and it proposes otherwise
        own = own[:-3]
    return [*SYSTEMS[system][:1], *runs.COMMON, *own, *SMALL, *SYSTEMS[system][1:]]


def losses(config: dict[str, Any], precision: str) -> list[str]:
    """Train, and return the loss of each step with all its bits."""
    config = {**config, "train": {**config["train"], "precision": precision}}
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        numbers = runs.numbers_of(runs.run("losses", config, Path(temporary)))
    found = [line["loss"] for key, line in numbers.items() if key.startswith("train ")]
    assert len(found) == config["train"]["steps"]
    return [value for value in found if value is not None]


def file_of(system: str) -> Path:
    """Where the losses of a system lie."""
    return STORED / f"{system}.json"


def stored(system: str) -> dict[str, Any]:
    """The record of a system."""
    return runs.json.loads(file_of(system).read_text())


def write(name: str) -> None:
    """Train and store the losses; a stored config is kept, and other machines' losses go."""
    system, _, precision = name.partition(".")
    here = {"environment": runs.environment(), "losses": {}}
    known = stored(system) if file_of(system).exists() else here
    config = known.get("config") or runs.composed(overrides_of(system))
    if known["environment"] != here["environment"]:
        known = here
    made = {**known["losses"], precision: losses(config, precision)}
    ordered = {each: made[each] for each in PRECISIONS if each in made}
    runs.save(file_of(system), {**here, "config": config, "losses": ordered})


def differences(name: str) -> list[str]:
    """Steps whose loss is not what it was; [] where all are."""
    system, _, precision = name.partition(".")
    record = stored(system)
    old = record["losses"][precision]
    new = losses(record["config"], precision)
    if not runs.comparable(record):
        old, new = old[: runs.EARLY], new[: runs.EARLY]
    near = 0.0 if runs.comparable(record) else PRECISIONS[precision]
    pairs = list(zip(old, new, strict=True))
    return [
        f"step {step}: then {runs.shown(before)}, now {runs.shown(now)}"
        for step, (before, now) in enumerate(pairs, 1)
        if not math.isclose(float.fromhex(before), float.fromhex(now), rel_tol=near)
    ]


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    sys.exit(runs.command(NAMES, write, differences))
