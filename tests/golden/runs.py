"""Golden runs: what five steps of every model of conf/model gave before the redesign, to the byte.

    python tests/golden/runs.py write|compare [NAME...]

`write` trains a run and writes tests/golden/runs/NAME.json; `compare` trains it again from the
config in that file and says what differs. The config is stored whole and resolved, so defaults may
change; `write` composes one only for a new name. A file holds, beside the config and where it was
made: every number of metrics.jsonl as `float.hex()`, and the sha256 (16 digits) of every tensor of
the model, its moving average and the optimiser's state, by the parameter's name.

Same machine type and version of torch: the bytes must be equal. Elsewhere: only losses are
compared, to 1e-6 relative (every other number counts pixels or objects, where one last bit may
decide), and no hashes. And of losses only those of the first `EARLY` steps: each update enlarges
the difference of a last bit. With AVX2 in place of AVX-512 the losses of step 1 agree to 1e-6,
those of step 2 differ by up to 1e-4, those of step 5 by up to 2e-2.

What knows today's modules is in `composed`, `train_in` and `tensors_of`; `renamed` is where new
names of parameters go.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).resolve().parent / "runs"
DATA = "{data}"  # in a stored config: the folder of `write_coco`
DATA_HASH = "7a6d980723bf436c"  # of what `write_coco` writes
DIGITS = 16  # of a hash
LOSS_TOLERANCE = 1e-6  # relative, on another machine type or version of torch
EARLY = 1  # steps whose losses are compared there
SAVED_STEP = 2  # where a resumed run goes on
PACKAGES = ("torchvision", "numpy", "scipy", "opencv-python-headless", "albumentations", "hotcoco")

COMMON = [
    "train.steps=5",
    "train.accumulate=2",
    "train.seed=7",
    "train.precision=fp32",
    "train.device=cpu",
    "train.processes=1",
    "train.threads=1",
    "train.workers=0",
    "train.eval_every=5",
    "train.keep=1",
    "schedule.warmup=2",
    "log.every=1",
    "log.tensorboard=false",
    "log.progress=false",
    "log.images=0",
]
SHAPES = [
    "dataset=shapes",
    "dataset.size=[64,64]",
    "dataset.crop=[64,64]",
    "dataset.train=8",
    "dataset.val=1",
    "train.batch_size=4",
]
OBJECTS = [
    "dataset=coco_json",
    f"dataset.annotations='{DATA}/train.json'",
    f"dataset.images='{DATA}/images'",
    f"dataset.val_annotations='{DATA}/val.json'",
    "dataset.crop=[96,96]",
    "augment.shorter=[64,96]",
    "augment.longest=128",
    "inference.shorter=64",
    "inference.longest=96",
    "train.batch_size=2",
]
# Rates that differ by group, so that a parameter that changes its group changes its bytes.
ADAMW = ["optimizer=adamw", "optimizer.backbone_factor=0.5", "optimizer.bias_factor=2.0"]
SGD = [
    "optimizer=sgd",
    "optimizer.lr=0.001",
    "optimizer.head_factor=2.0",
    "optimizer.bias_factor=2.0",
]
SCRATCH = "model.weights=null"
GROUP = "model.norm=group"
BOTH_GROUP = ["model.norm=group", "model.head_norm=group"]
BLIND = "dataset.metric._target_=segtrain.metrics.coco.ProposalEvaluator"
MASKS = [
    BLIND,
    "dataset.monitor=segm/AR@1000",
]
# What the records of FPN's proposals were made with: regions and rules of before its appendix.
DEEPMASK = [
    "model.levels=7",
    "model.geometry=cells",
    "model.sampling._target_=segtrain.models.fpn.DeepMaskSampling",
]
BOXES = [
    BLIND,
    "+dataset.metric.kind=bbox",
    "dataset.monitor=bbox/AR@1000",
]

# What each model of conf/model needs beside its own file; those from scratch say so themselves.
SEMANTIC: dict[str, list[str]] = {
    "deconvnet": [*SGD, SCRATCH, "inference.boxes.count=2"],
    "deconvnet_vgg11": [*ADAMW, "inference.boxes.count=2"],
    "deeplab": [*SGD, SCRATCH, GROUP],
    "deeplab_r18": [*ADAMW, "augment=strong"],
    "deeplab_vgg16": [*SGD, SCRATCH],
    "deeplabv3": [*SGD, SCRATCH],
    "deeplabv3_cascade": [*SGD, SCRATCH],
    "deeplabv3_mobilenet": [*SGD, SCRATCH],
    "deeplabv3_r18": ADAMW,
    "deeplabv3plus": [*SGD, SCRATCH],
    "deeplabv3plus_r18": ADAMW,
    "deeplabv3plus_xception65": SGD,
    "encnet": [*SGD, SCRATCH],
    "encnet_r18": ADAMW,
    "fcn": [*SGD, SCRATCH, "train.batch_size=2"],
    "fcn_alexnet": SGD,
    "fcn_resnet50": [*SGD, SCRATCH],
    "parsenet": [*SGD, SCRATCH],
    "parsenet_vgg11": ADAMW,
    "pspnet": [*SGD, SCRATCH],
    "pspnet_r18": ADAMW,
    "semantic_fpn": [*SGD, SCRATCH],
    "unet": SGD,
    "unet_32": ADAMW,
    "unet_paper": [
        *SGD,
        "augment=elastic",
        "dataset.size=[188,188]",
        "dataset.crop=[188,188]",
        "train.batch_size=2",
    ],
}
INSTANCE: dict[str, list[str]] = {
    "box_rpn": [*SGD, SCRATCH, *BOTH_GROUP, *BOXES],
    "fpn": [*SGD, SCRATCH, *BOTH_GROUP, *MASKS, *DEEPMASK],
    "fpn_r18": [*ADAMW, *MASKS, *DEEPMASK, "train.batch_size=4"],
    "mask_rcnn": [*SGD, SCRATCH, *BOTH_GROUP],
    "mask_rcnn_r18": [*ADAMW, "train.batch_size=4"],
    "panet": [*SGD, SCRATCH, GROUP],
    "panet_r18": [*ADAMW, "train.batch_size=4", "train.aspect_groups=true"],
}
TWICE = ("deeplabv3plus_r18", "mask_rcnn_r18")  # also with an average, resumed, in two processes
VARIANTS = {
    "ema": ["train.ema=0.9"],
    "resumed": ["train.save_every=1", "train.keep=5"],
    "two_processes": ["train.processes=2", "train.batch_size=8"],
}


def overrides_of(name: str) -> list[str]:
    """The settings of the run `name`, MODEL or MODEL.VARIANT."""
    model, _, variant = name.partition(".")
    own = [*SHAPES, *SEMANTIC[model]] if model in SEMANTIC else [*OBJECTS, *INSTANCE[model]]
    return [f"model={model}", *COMMON, *own, *VARIANTS.get(variant, [])]


NAMES = [*SEMANTIC, *INSTANCE, *(f"{model}.{variant}" for model in TWICE for variant in VARIANTS)]


# ---------------------------------------------------------------------- what knows today's modules


def composed(overrides: list[str]) -> dict[str, Any]:
    """The whole config of a new run as plain types, resolved. Only a new name needs it."""
    from segtrain.config.compose import check, compose_config
    from segtrain.config.files import masked_container

    config, _ = compose_config(overrides)
    check(config)
    return masked_container(config)


def train_in(folder: Path) -> None:
    """Train, or go on with, the run whose config.yaml lies in `folder`, in this process."""
    from segtrain.config.files import load_run
    from segtrain.engine.train import fit
    from segtrain.runtime.distributed import World

    fit(load_run(folder / "config.yaml"), folder, World())


@dataclass
class Tensors:
    """What the newest checkpoint of a run holds, by name of parameter or buffer."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a run's newest checkpoint.

    A checkpoint numbers the optimiser's states in the order of its groups, and groups follow the
    order in which the network registers its parameters. So network and optimiser are built once
    more from the run's config: the k-th parameter over the groups is the object that the k-th
    number belongs to, and `named_parameters` says how it is called. Names are right whatever the
    order is.
    """
    from segtrain.config import instantiate, parts
    from segtrain.config.files import load_run

    run = load_run(folder / "config.yaml")
    newest = max((folder / "checkpoints").glob("step_*"))
    classes = json.loads((newest / "manifest.json").read_text())["meta"]["class_names"]

    def read(name: str) -> dict[str, Any]:
        path = newest / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else {}

    network = parts.model(run.model, len(classes))
    groups = instantiate.build(run.optimizer, "optimizer", model=network).param_groups
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    order = [name_of[id(parameter)] for group in groups for parameter in group["params"]]
    saved = read("optimizer")
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    sizes = {name: parameter.shape for name, parameter in network.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for name, number in zip(order, numbers, strict=True):
        states[name] = saved["state"].get(number, {})
        wrong = [k for k, v in states[name].items() if v.ndim and v.shape != sizes[name]]
        if wrong:
            raise AssertionError(f"{name}: the state {wrong[0]} has another shape")
    averaged = {name.removeprefix("module."): value for name, value in read("ema").items()}
    return Tensors(read("model"), averaged, states)


def renamed(record: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what is recorded of each parameter or buffer under the name that it has today."""
    from segtrain.config.old_names import modern_parameters

    names = modern_parameters(config["model"]["_target_"], record)
    return {names[name]: value for name, value in record.items()}


# ---------------------------------------------------------------------- generated objects


class Draws:
    """Whole numbers from the raw bits of PCG64, which numpy promises never to change."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def __call__(self, low: int, high: int) -> int:
        """From `low` to before `high`."""
        return low + int(self.bits.random_raw()) % (high - low)

    def noise(self, shape: tuple[int, ...], high: int) -> np.ndarray:
        """Numbers from 0 to before `high`."""
        raw = self.bits.random_raw(math.prod(shape))
        return (raw % np.uint64(high)).astype(np.int64).reshape(shape)


KINDS = ("box", "ellipse", "frame")
EMPTY = 2  # the place of the image without an object in each split
CROWD = 1  # the place of the image with a crowd region


def write_coco(folder: Path) -> str:
    """train.json (8 images) and val.json (4) of COCO's format, images/*.png; returns their hash."""
    seen = hashlib.sha256()
    (folder / "images").mkdir(parents=True)
    for split, count, seed in (("train", 8, 11), ("val", 4, 12)):
        draws = Draws(seed)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for place in range(count):
            pixels, masks = scene(draws, 0 if place == EMPTY else draws(2, 5))
            height, width = pixels.shape[:2]
            name = f"{split}_{place}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            seen.update(pixels.tobytes())
            images.append({"id": place + 1, "file_name": name, "height": height, "width": width})
            for number, (kind, mask) in enumerate(masks):
                crowd = place == CROWD and number == 0
                known = {"id": len(annotations) + 1, "image_id": place + 1, "iscrowd": int(crowd)}
                annotations.append(known | annotated(kind, mask, crowd))
        categories = [{"id": 10 * (i + 1), "name": kind} for i, kind in enumerate(KINDS)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, sort_keys=True)
        seen.update(text.encode())
        (folder / f"{split}.json").write_text(text)
    return seen.hexdigest()[:DIGITS]


def scene(draws: Draws, objects: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (H, W, 3) and its objects: the kind, and the mask (H, W), hidden parts too."""
    height = draws(60, 100)
    width = draws(60, 100)
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), [draws(60, 120) for _ in range(3)], np.int64)
    masks: list[tuple[int, np.ndarray]] = []
    for _ in range(objects):
        kind = draws(0, len(KINDS))
        high = draws(14, height - 4)
        wide = draws(14, width - 4)
        inside_y = 2 * (rows - draws(0, height - high)) + 1 - high
        inside_x = 2 * (columns - draws(0, width - wide)) + 1 - wide
        mask = (abs(inside_y) < high) & (abs(inside_x) < wide)
        if KINDS[kind] == "ellipse":
            mask = (inside_y * wide) ** 2 + (inside_x * high) ** 2 < (high * wide) ** 2
        elif KINDS[kind] == "frame":
            mask &= (abs(inside_y) >= high - 8) | (abs(inside_x) >= wide - 8)
        image[mask] = [draws(0, 230) for _ in range(3)]
        masks.append((kind, mask))
    image += draws.noise(image.shape, 25)
    return image.astype(np.uint8), masks


def annotated(kind: int, mask: np.ndarray, crowd: bool) -> dict[str, Any]:
    """An annotation's own part: boxes as polygons, all else, and crowd regions, as run lengths."""
    rows = np.flatnonzero(mask.any(1)).tolist()
    columns = np.flatnonzero(mask.any(0)).tolist()
    top = rows[0]
    left = columns[0]
    bottom = rows[-1] + 1
    right = columns[-1] + 1
    segmentation: Any = [[left, top, right, top, right, bottom, left, bottom]]
    if KINDS[kind] != "box" or crowd:
        segmentation = {"size": list(mask.shape), "counts": run_lengths(mask)}
    return {
        "category_id": 10 * (kind + 1),
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "segmentation": segmentation,
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's: column by column, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff([0, *ends.tolist()]).tolist()


def filled(plain: Any, place: str, value: str) -> Any:
    """A plain value with `place` in its texts replaced by `value`."""
    if isinstance(plain, Mapping):
        return {key: filled(item, place, value) for key, item in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [filled(item, place, value) for item in plain]
    return plain.replace(place, value) if isinstance(plain, str) else plain


# ---------------------------------------------------------------------- a run and its record


def environment() -> dict[str, Any]:
    """Where numbers were made. `machine` and `torch` decide whether bytes are compared."""
    wanted = ("vendor_id", "cpu family", "model", "model name")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):  # only Linux has it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    parts = [platform.machine(), *(found[key] for key in wanted if key in found)]
    return {
        "machine": " ".join([*parts, torch.backends.cpu.get_cpu_capability()]),
        "torch": torch.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def comparable(record: Mapping[str, Any]) -> bool:
    """Whether a record was made on this machine type with this version of torch."""
    here = environment()
    return all(record["environment"][key] == here[key] for key in ("machine", "torch"))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the console's lines, and with the caller's number of threads at the end."""
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.set_num_threads(threads)


def run(name: str, config: Mapping[str, Any], folder: Path) -> Path:
    """Make the run `name` of a stored config below `folder`; returns the run folder."""
    data = folder / "data"
    place = folder / "run"
    made = write_coco(data)
    assert made == DATA_HASH, f"the generated objects have the hash {made}, not {DATA_HASH}"
    place.mkdir()
    (place / "config.yaml").write_text(yaml.safe_dump(filled(config, DATA, str(data))))
    if name.endswith(".two_processes"):
        by_command(place)
        return place
    with quietly():
        train_in(place)
        if name.endswith(".resumed"):
            forget(place, SAVED_STEP)
            train_in(place)
    return place


def by_command(folder: Path) -> None:
    """As a user goes on with a run folder: the only way to several processes."""
    command = [sys.executable, "-m", "segtrain", f"resume={folder}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def forget(folder: Path, step: int) -> None:
    """Make a finished run one that ended after `step`."""
    (folder / "summary.json").unlink()
    kept = 0
    for path in (folder / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
        else:
            kept += 1
    assert kept, "no checkpoint is left to go on from"


def numbers_of(folder: Path) -> dict[str, dict[str, str | None]]:
    """{"train 1": {"loss": hexadecimal, ...}, ..., "val 5": {...}} of a run's metrics.jsonl."""
    found: dict[str, dict[str, str | None]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        key = f"{values.pop('phase')} {values.pop('step')}"
        assert key not in found, f"{key} stands twice in metrics.jsonl"
        found[key] = {name: written(value) for name, value in values.items()}
    return found


def written(value: float | None) -> str | None:
    """A number so that all its bits can be read."""
    return None if value is None else float(value).hex()


def digest(tensor: Tensor) -> str:
    """The hash of a tensor's values in the order of its indices, whatever its memory layout."""
    array = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(array.tobytes()).hexdigest()[:DIGITS]


def said(tensor: Tensor) -> str:
    """Dtype, shape and hash in one line."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {digest(tensor)}"


def recorded(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Make the run `name` and write down what came out."""
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        place = run(name, config, Path(temporary))
        tensors = tensors_of(place)
        return {
            "environment": environment(),
            "config": config,
            "numbers": numbers_of(place),
            "model": {key: said(value) for key, value in tensors.model.items()},
            "ema": {key: said(value) for key, value in tensors.ema.items()},
            "optimizer": {
                key: " ".join(f"{part} {digest(value)}" for part, value in sorted(state.items()))
                for key, state in tensors.optimizer.items()
            },
        }


# ---------------------------------------------------------------------- comparing


def file_of(name: str) -> Path:
    """Where the record of a run lies."""
    return STORED / f"{name}.json"


def stored(name: str) -> dict[str, Any]:
    """The record of a run."""
    return json.loads(file_of(name).read_text())


def differences(name: str) -> list[str]:
    """What is not as it was when the run is made again; [] where all is."""
    old = stored(name)
    new = recorded(name, old["config"])
    if not comparable(old):
        return numbers_apart(
            early(old["numbers"], EARLY),
            early(new["numbers"], EARLY),
            exact=False,
        )
    apart = numbers_apart(old["numbers"], new["numbers"], exact=True)
    for part in ("model", "ema", "optimizer"):
        expected = renamed(old[part], old["config"])
        assert len(expected) == len(old[part]), "two parameters were given one name"
        apart += hashes_apart(part, expected, new[part])
    return apart


def early(numbers: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The first so many lines of training."""
    lines = [key for key in numbers if key.startswith("train ")]
    return {key: numbers[key] for key in lines[:steps]}


def numbers_apart(
    old: Mapping[str, Mapping[str, str | None]],
    new: Mapping[str, Mapping[str, str | None]],
    exact: bool,
) -> list[str]:
    """Lines of metrics.jsonl, or of metrics.json, that differ; inexact: of losses alone."""
    apart = [f"{key}: only then" for key in old.keys() - new.keys()]
    apart += [f"{key}: only now" for key in new.keys() - old.keys()]
    for key in [key for key in old if key in new]:
        if old[key].keys() != new[key].keys():
            apart.append(f"{key}: other names, {sorted(old[key].keys() ^ new[key].keys())}")
            continue
        for name, before in old[key].items():
            if not agree(name, before, new[key][name], exact):
                apart.append(f"{key} {name}: then {shown(before)}, now {shown(new[key][name])}")
    return apart


def agree(name: str, before: str | None, now: str | None, exact: bool) -> bool:
    """Whether two numbers are as equal as the rule of this module wants."""
    if exact or before is None or now is None:
        return before == now or not exact
    loss = name.partition("/")[0] == "loss"
    near = math.isclose(float.fromhex(before), float.fromhex(now), rel_tol=LOSS_TOLERANCE)
    return near or not loss


def shown(value: str | None) -> str:
    """A stored number for people."""
    return "null" if value is None else repr(float.fromhex(value))


def hashes_apart(part: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Tensors of one part that differ."""
    apart = [f"{part} {key}: missing now" for key in old if key not in new]
    apart += [f"{part} {key}: not there then" for key in new if key not in old]
    changed = [key for key in old if key in new and old[key] != new[key]]
    return apart + [f"{part} {key}: then {old[key]}, now {new[key]}" for key in changed]


# ---------------------------------------------------------------------- the command


def write(name: str) -> None:
    """Make a run and write its record; the config of a record that is there is kept."""
    known = file_of(name).exists()
    config = stored(name)["config"] if known else composed(overrides_of(name))
    save(file_of(name), recorded(name, config))


def save(path: Path, content: Any) -> None:
    """A JSON file with a line for every tensor."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def command(
    names: list[str],
    write: Callable[[str], None],
    compare: Callable[[str], list[str]],
) -> int:
    """`write|compare [NAME...]` of `sys.argv` over `names`; the exit code."""
    task, *asked = sys.argv[1:] or ["help"]
    if task not in ("write", "compare"):
        print(f"usage: python {sys.argv[0]} write|compare [NAME...]\n{' '.join(names)}")
        return 2
    failed = 0
    for name in asked or names:
        start = time.monotonic()
        apart: list[str] = []
        if task == "write":
            write(name)
        else:
            apart = compare(name)
        outcome = "written" if task == "write" else f"{len(apart)} differences"
        print(f"{name:<36} {time.monotonic() - start:6.1f} s  {outcome}", flush=True)
        print("".join(f"    {line}\n" for line in apart[:12]), end="")
        failed += bool(apart)
    return min(failed, 1)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    sys.exit(command(NAMES, write, differences))
