"""What a GPU does with segtrain: right numbers first, then memory and images per second.

Run:  python scripts/gpu_check.py --out outputs/gpu_check               one GPU, under 8 minutes
      python scripts/gpu_check.py --part models --models pspnet unet    one part, two models
      python scripts/gpu_check.py --device cpu --tiny                   every part small, no GPU

Needs no data: images are generated, weights are random. Each row is printed and written the moment
it is there (OUT/gpu_check.json, OUT/gpu_check.md), so a run that is cut off keeps what it had; once
`--minutes` are over no row is begun, and those left out are named. A row that fails tells why, and
the others go on. Ends with 1 where a check failed.

group          NCCL, DDP and SyncBN in a group of one (CPU: gloo and DDP): the loss alone to 1e-3
deterministic  `train.deterministic`: three steps twice give weights of equal bits
speed          images/s and peak memory of our step, of a plain loop around our network, and of
               torchvision's network
evaluate       images/s of predicting whole images
rates          images/s of the loader alone, of the steps alone, of both
paste          masks into images, to run lengths: equal to the CPU's
crf            the dense CRF: the CPU's marginals to 1e-3
compile        a step of the model as `train.compile` has it: the eager loss to 2 %
models         two steps of every model of conf/model: fp32 without TF32 gives the CPU's losses
               before and after the update to 1e-3; bf16 and fp16 are finite, and before the update
               within 2 % of fp32
batch          `train.batch_size=auto` finds a batch, and steps of it fit
sweep          two runs by hydra/launcher=gpus, both on one GPU (CPU: two at a time): both are
               complete, were trained on the device, and no GPU is said to be idle
waits          the lines where a step waits for the host: none in semantic systems
shares         waiting for data told from computing by events, while the host is ahead of its GPU
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Deterministic kernels of cuBLAS need it before the first one runs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import segtrain
from segtrain.config import parts as config_parts
from segtrain.config.schema import RunConf
from segtrain.engine import batch_size
from segtrain.engine.objective import mask_map_of
from segtrain.engine.parts import build_parts, train_batches
from segtrain.engine.state import TrainState, new_state
from segtrain.engine.update import read, update
from segtrain.engine.where_time_goes import DeviceIdle
from segtrain.logs.clock import Clock
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World
from segtrain.runtime.signals import Signals
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

PRECISIONS = ("fp32", "bf16", "fp16")
CLASSES = 5
CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
SOURCES = f"segtrain{os.sep}"
FP32_TOLERANCE = 1e-3  # relative, of a loss on the GPU beside the CPU
HALF_TOLERANCE = 0.02  # relative, of a loss in bf16 or fp16 beside fp32
SIDES = {"unet_paper": 572}  # the network takes 184 pixels away
# From scratch a frozen norm normalises nothing: scores overflow in fp16.
FROM_SCRATCH = {"weights": None, "norm": "batch"}
# What makes the models small enough for `--tiny`, where they have the argument.
TINY = {"width": 32, "hidden": 32, "code": 64, "regions": 16}
# Ops whose result the host needs before it can go on.
WAITING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="folder of results")
parser.add_argument("--part", nargs="+", metavar="NAME", help="only these parts (see above)")
parser.add_argument("--models", nargs="+", metavar="NAME", help="of `models` and `waits`; all")
parser.add_argument("--minutes", type=float, default=7.5, help="after which no row is begun")
parser.add_argument("--tiny", action="store_true", help="small models and images: tests the script")


@dataclass
class Report:
    """The rows so far, written to a folder with every new one."""

    folder: Path
    deadline: float  # of time.monotonic()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one row, or say why there is none; print and write it.

        `measure` returns values by name, and may return `ok`, whether its check passed.
        """
        start = time.monotonic()
        row: dict[str, Any] = {"part": part, "name": name}
        if start > self.deadline:
            row |= {"ok": None, "note": "not run: the time was up"}
        else:
            try:
                row |= {"ok": None} | measure()
            except Exception as error:  # a missing kernel or package must not cost the other rows
                traceback.print_exc(limit=-3)
                row |= {"ok": False, "note": f"{type(error).__name__}: {first_line(error)}"}
            row["seconds"] = round(time.monotonic() - start, 1)
        self.rows.append(row)
        print(as_text(row), flush=True)
        self.write()

    def write(self) -> None:
        """Write all rows as JSON and as a table."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": self.rows}
        (self.folder / "gpu_check.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "gpu_check.md").write_text(as_table(self.rows))


def first_line(error: Exception) -> str:
    """Return what an error says first, short enough for a table."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def verdict(row: dict[str, Any]) -> str:
    """Return whether a row's check passed; a dash for a row that only measures."""
    return {True: "ok", False: "FAILED", None: "-"}[row["ok"]]


def values_of(row: dict[str, Any]) -> str:
    """Return a row's numbers as text."""
    shown = {k: v for k, v in row.items() if k not in ("part", "name", "ok", "seconds")}
    return ", ".join(
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )


def as_text(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    return f"{row['part']:<14}{row['name']:<34}{verdict(row):<8}{values_of(row)}"


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return all rows as markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in machine().items()), ""]
    lines += ["| part | of | check | numbers | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['part']} | {row['name']} | {verdict(row)} | "
        f"{values_of(row).replace('|', '/')} | {row.get('seconds', '-')} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """Name what the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cuda = torch.version.cuda or "none"
    return {
        "gpu": gpu,
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "cuda": cuda,
        "python": platform.python_version(),
    }


# --- one training step, ours ---


@dataclass
class Trainer:
    """A network with what `engine.update.update` asks for, without a data set."""

    run: RunConf
    parts: Any  # loss and schedule
    state: TrainState
    world: World
    signals: Signals

    def step(self, batch: Batch) -> float:
        """Make one update, wait for it, return the loss."""
        report = update(self.run, self.parts, self.state, [batch], self.world, self.signals)
        self.state.step += 1
        outcome = read([report])[0]
        assert not outcome.bad, "a loss or gradient is not finite"
        return outcome.losses["loss"]


def compose(options: argparse.Namespace, name: str, *more: str) -> RunConf:
    """Compose a run of a model from scratch; with `--tiny` a small one."""
    run = segtrain.compose([f"model={name}", "optimizer=sgd", "optimizer.lr=0.001", *more])
    changes: dict[str, Any] = {k: v for k, v in FROM_SCRATCH.items() if run.model.get(k)}
    if run.model.get("norm") not in (None, "frozen"):
        changes.pop("norm")  # of others the model's own
    if options.tiny:
        changes |= {key: value for key, value in TINY.items() if key in run.model}
        if "proposals" in run.model:
            single = isinstance(run.model["proposals"], int)
            changes["proposals"] = 20 if single else [40, 20]
    return replace(run, model={**run.model, **changes})


def built(run: RunConf, classes: int) -> nn.Module:
    """Build a run's network on the CPU, the same every time, without dropout.

    Dropout draws other numbers on a GPU. Scores that start at zero (FCN's) would give every image
    the same loss and pass on no gradient, so they are drawn too.
    """
    torch.manual_seed(0)
    network = config_parts.model(run.model, classes)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.01)
    return network


def trainer(
    run: RunConf, network: nn.Module, device: torch.device, precision: str, classes: int
) -> Trainer:
    """Put a copy of a network on a device, with loss and optimiser."""
    layout = torch.channels_last if run.train.channels_last else torch.contiguous_format
    network = copy.deepcopy(network).to(device, memory_format=layout).train()
    names = [str(number) for number in range(classes)]
    loss = config_parts.loss(run.loss, device, names)
    state = TrainState(
        network,
        network,
        config_parts.optimizer(run.optimizer, network),
        Precision(precision, device.type),
        ema=None,
    )
    parts = SimpleNamespace(loss=loss, schedule=lambda step: 1.0)
    return Trainer(run, parts, state, World(device=device), Signals())


def batch_for(
    run: RunConf, loss: Any, images: int, size: tuple[int, int], classes: int, objects: int = 8
) -> Batch:
    """Make noise with labels (a grid of classes), or with `objects` rectangles an image."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    pixels = torch.randint(256, (images, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([list(size)] * images)
    ids = [str(number) for number in range(images)]
    if "multitask" in str(run.loss["_target_"]):
        drawn = [rectangles(size, objects, classes, generator) for _ in range(images)]
        return Batch(pixels, sizes, ids, instances=drawn)
    rows = torch.arange(height)[:, None] // max(1, height // 8)
    columns = torch.arange(width) // max(1, width // 8)
    mask = ((rows + columns) % classes).to(torch.uint8)
    mask[:2] = 255
    make = mask_map_of(loss)
    maps = None if make is None else torch.from_numpy(make(mask.numpy())).expand(images, -1, -1)
    return Batch(pixels, sizes, ids, masks=mask.expand(images, -1, -1), mask_maps=maps)


def rectangles(
    size: tuple[int, int], count: int, classes: int, generator: torch.Generator
) -> Instances:
    """Draw objects of a quarter to a half of the image's sides."""
    whole = torch.tensor([size[1], size[0]], dtype=torch.float32)
    extent = whole * (0.25 + 0.25 * torch.rand(count, 2, generator=generator))
    corner = ((whole - extent) * torch.rand(count, 2, generator=generator)).floor()
    boxes = torch.cat([corner, (corner + extent).floor()], 1)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    labels = torch.arange(count) % classes
    return Instances(boxes, labels, masks, torch.zeros(count, dtype=torch.bool))


def apart(value: float, other: float) -> float:
    """Return the relative difference of two losses."""
    return abs(value - other) / max(abs(other), 1e-12)


def is_finite(value: float) -> bool:
    """Tell whether a loss is a number, neither infinite nor nan."""
    return abs(value) < float("inf")


# --- the parts ---


def chosen_models(options: argparse.Namespace) -> list[str]:
    """Return the models of conf/model; with `--tiny` those that are small already."""
    names = sorted(path.stem for path in CONF.glob("*.yaml"))
    if options.tiny:
        names = [name for name in names if name.endswith(("_r18", "_vgg11"))]
    return options.models or names


def two_steps(
    run: RunConf, network: nn.Module, side: int, device: str, precision: str
) -> list[float]:
    """Return the losses of two steps of a model on one batch: before and after an update."""
    made = trainer(run, network, torch.device(device), precision, CLASSES)
    batch = batch_for(run, made.parts.loss, 2, (side, side), CLASSES).to(made.world.device)
    return [made.step(batch) for _ in range(2)]


def part_models(options: argparse.Namespace, report: Report) -> None:
    """Let every model train on the CPU and on the device, in three precisions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    def measure(name: str) -> dict[str, Any]:
        run = compose(options, name)
        network = built(run, CLASSES)  # once: drawing 250 million weights takes seconds
        side = 64 if options.tiny else SIDES.get(name, 224)
        cpu = two_steps(run, network, side, "cpu", "fp32")
        fp32, bf16, fp16 = (two_steps(run, network, side, options.device, p) for p in PRECISIONS)
        error = max(apart(a, b) for a, b in zip(fp32, cpu, strict=True))
        half_error = max(apart(each[0], fp32[0]) for each in (bf16, fp16))
        finite = all(is_finite(loss) for loss in (*fp32, *bf16, *fp16))
        return {
            "ok": finite and error <= FP32_TOLERANCE and half_error <= HALF_TOLERANCE,
            "loss": fp32[0],
            "fp32 apart": error,
            "half apart": half_error,
            "finite": finite,
        }

    for name in chosen_models(options):
        report.row("models", name, lambda name=name: measure(name))


def part_deterministic(options: argparse.Namespace, report: Report) -> None:
    """Train three steps twice with deterministic kernels, and compare every bit."""

    def weights(name: str) -> list[Tensor]:
        run = compose(options, name)
        side = 64 if options.tiny else 224
        made = trainer(run, built(run, CLASSES), torch.device(options.device), "bf16", CLASSES)
        batch = batch_for(run, made.parts.loss, 2, (side, side), CLASSES).to(made.world.device)
        for _ in range(3):
            made.step(batch)
        return list(made.state.network.state_dict().values())

    def measure(name: str) -> dict[str, Any]:
        torch.use_deterministic_algorithms(True)
        try:
            one, two = weights(name), weights(name)
        finally:
            torch.use_deterministic_algorithms(False)
        unequal = sum(not torch.equal(a, b) for a, b in zip(one, two, strict=True))
        return {"ok": unequal == 0, "tensors": len(one), "unequal": unequal}

    for name in ("deeplabv3plus_r18", "pspnet_r18", "mask_rcnn_r18"):
        report.row("deterministic", name, lambda name=name: measure(name))


def part_compile(options: argparse.Namespace, report: Report) -> None:
    """Compile a model as `train.compile` does; beside its eager loss and speed."""
    # Where only the script is tested no kernel is compiled, which takes half a minute.
    backend = "aot_eager" if options.tiny else "inductor"

    def measure(name: str) -> dict[str, Any]:
        run = compose(options, name)
        side = 64 if options.tiny else 513
        images = 2 if options.tiny else 8
        network = built(run, CLASSES)
        results: dict[str, Any] = {}
        losses = []
        for way in ("eager", "compiled"):
            made = trainer(run, network, torch.device(options.device), "bf16", CLASSES)
            if way == "compiled":
                torch.compiler.reset()
                made.state.model = torch.compile(made.state.network, backend=backend)
            size = (side, side)
            batch = batch_for(run, made.parts.loss, images, size, CLASSES).to(made.world.device)
            start = time.perf_counter()
            losses.append(made.step(batch))
            results[f"{way} first s"] = time.perf_counter() - start
            results[f"{way} images/s"] = rate(
                options, lambda made=made, batch=batch: made.step(batch), images
            )
        error = apart(losses[1], losses[0])
        return {"ok": error <= HALF_TOLERANCE, "apart": error, **results}

    names = ("deeplabv3plus_r18",) if options.tiny else ("deeplabv3plus_r18", "pspnet_r18")
    for name in names:
        report.row("compile", name, lambda name=name: measure(name))


@contextmanager
def group_of_one(backend: str) -> Iterator[None]:
    """Join a group that nobody else is in."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            backend, init_method=f"file://{folder}/group", rank=0, world_size=1
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def part_group(options: argparse.Namespace, report: Report) -> None:
    """Train through DDP and SyncBN in a group of one process."""
    cuda = options.device == "cuda"
    backend = "nccl" if cuda else "gloo"

    def measure() -> dict[str, Any]:
        run = compose(options, "deeplabv3plus_r18")
        side = 64 if options.tiny else 224
        network = built(run, CLASSES)
        device = torch.device(options.device)
        alone = trainer(run, network, device, "fp32", CLASSES)
        batch = batch_for(run, alone.parts.loss, 2, (side, side), CLASSES).to(device)
        expected = [alone.step(batch) for _ in range(2)]
        with group_of_one(backend), warnings.catch_warnings():
            # Of strides of depthwise weights that can be written in two ways, as in `World.wrap`.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            total = torch.ones(3, device=device)
            torch.distributed.all_reduce(total)
            joined = trainer(run, network, device, "fp32", CLASSES)
            if cuda:  # it refuses the CPU
                inner = nn.SyncBatchNorm.convert_sync_batchnorm(joined.state.network)
                joined.state.network = inner
                joined.state.optimizer = config_parts.optimizer(run.optimizer, inner)
            ids = [torch.cuda.current_device()] if cuda else None
            joined.state.model = nn.parallel.DistributedDataParallel(
                joined.state.network, device_ids=ids, gradient_as_bucket_view=True
            )
            losses = [joined.step(batch) for _ in range(2)]
        error = max(apart(a, b) for a, b in zip(losses, expected, strict=True))
        ok = error <= FP32_TOLERANCE and total.tolist() == [1, 1, 1]
        return {"ok": ok, "apart": error, "sync_bn": cuda}

    report.row("group", backend, measure)


class Waits(TorchDispatchMode):
    """Note from which line of segtrain an op is called whose result the host needs at once."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func._schema.name.partition("::")[2]
        by_flags = name == "index" and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITING_OPS or by_flags:
            self.places.append(calling_line())
        return func(*args, **(kwargs or {}))


def calling_line() -> str:
    """Return the innermost line of segtrain on the stack: `layers/roi.py:75`."""
    for frame in reversed(traceback.extract_stack()):
        if SOURCES in frame.filename:
            return f"{frame.filename.rpartition(SOURCES)[2]}:{frame.lineno}"
    return "elsewhere"


@contextmanager
def waits_of(device: torch.device) -> Iterator[list[str]]:
    """Collect the lines of segtrain that wait for the host.

    On a GPU torch warns of every synchronisation, on a CPU the ops are looked at that would.
    """
    if device.type == "cpu":
        mode = Waits()
        with mode:
            yield mode.places
        return
    places: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():  # it restores `showwarning` too
            warnings.simplefilter("always")
            warnings.showwarning = lambda *_, **__: places.append(calling_line())
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")


def part_waits(options: argparse.Namespace, report: Report) -> None:
    """List where an update waits for the host, reading its loss left out."""

    def measure(name: str) -> dict[str, Any]:
        run = compose(options, name)
        side = 64 if options.tiny else SIDES.get(name, 224)
        device = torch.device(options.device)
        made = trainer(run, built(run, CLASSES), device, "bf16", CLASSES)
        batch = batch_for(run, made.parts.loss, 2, (side, side), CLASSES).to(device)
        made.step(batch)  # the first one makes buffers and picks kernels
        with waits_of(device) as places:
            update(run, made.parts, made.state, [batch], made.world, made.signals)
        semantic = batch.instances is None
        listed = [f"{place} x{places.count(place)}" for place in sorted(set(places))]
        ok = not places if semantic else None
        return {"ok": ok, "waits": len(places), "where": "; ".join(listed) or "nowhere"}

    for name in chosen_models(options):
        report.row("waits", name, lambda name=name: measure(name))


def rate(options: argparse.Namespace, step: Callable[[], object], images: int) -> float:
    """Return images per second: the median of single steps, each waited for, after some unmeasured.

    The host waits for every step, as a loop does that shows its loss.
    """
    warm, timed = (1, 2) if options.tiny else (4, 12)
    seconds = []
    for number in range(warm + timed):
        start = time.perf_counter()
        step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        if number >= warm:
            seconds.append(time.perf_counter() - start)
    return images / statistics.median(seconds)


def measured(
    options: argparse.Namespace, step: Callable[[], object], images: int
) -> dict[str, Any]:
    """Return images/s and, on a GPU, the most memory that tensors took."""
    if options.device == "cpu":
        return {"images/s": rate(options, step, images), "peak MiB": "-"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    speed = rate(options, step, images)
    return {"images/s": speed, "peak MiB": round(torch.cuda.max_memory_allocated() / 2**20)}


def plain_step(
    network: nn.Module, loss_of: Callable[[], Tensor], device: torch.device
) -> Callable[[], float]:
    """Return one step of a loop as in the examples of libraries: bf16 autocast and SGD."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torchvision_network(detector: bool, classes: int, tiny: bool, edge: int) -> nn.Module:
    """Build torchvision's DeepLabv3 on ResNet-101 (a tiny one: on ResNet-50) or Mask R-CNN."""
    from torchvision.models import detection, segmentation

    if detector:
        return detection.maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=classes + 1,
            min_size=edge,
            max_size=edge * 5 // 3,
            norm_layer=nn.BatchNorm2d,
        )
    make = segmentation.deeplabv3_resnet50 if tiny else segmentation.deeplabv3_resnet101
    return make(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)


def torchvision_loss(network: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """Return what computes torchvision's loss of a batch on the device."""
    if batch.instances is None:
        pixels = batch.images.float() / 255
        assert batch.masks is not None
        truth = batch.masks.long()
        return lambda: nn.functional.cross_entropy(network(pixels)["out"], truth, ignore_index=255)
    images = [image.float() / 255 for image in batch.images]
    targets = [
        {"boxes": each.boxes, "labels": each.labels + 1, "masks": each.masks.to(torch.uint8)}
        for each in batch.instances
    ]
    return lambda: sum(network(images, targets).values(), start=torch.zeros(()).to(images[0]))


# Model, the small one of `--tiny`, images of a step, height and width, classes.
SPEEDS = (
    ("deeplabv3plus", "deeplabv3plus_r18", 8, (769, 769), 19),
    ("pspnet", "pspnet_r18", 8, (713, 713), 19),
    ("mask_rcnn", "mask_rcnn_r18", 4, (800, 1333), 80),
)


def part_speed(options: argparse.Namespace, report: Report) -> None:
    """Time three systems: our step, a plain loop around our network, torchvision's own network.

    torchvision has neither DeepLabv3+ nor PSPNet: its DeepLabv3 of the same trunk stands beside
    both, at stride 8.
    """
    device = torch.device(options.device)

    def ours(name: str, images: int, size: tuple[int, int], classes: int) -> dict[str, Any]:
        run = compose(options, name, "train.precision=bf16")
        made = trainer(run, built(run, classes), device, "bf16", classes)
        batch = batch_for(run, made.parts.loss, images, size, classes).to(device)
        return measured(options, lambda: made.step(batch), images)

    def plain(name: str, images: int, size: tuple[int, int], classes: int) -> dict[str, Any]:
        run = compose(options, name, "train.precision=bf16")
        made = trainer(run, built(run, classes), device, "bf16", classes)
        batch = batch_for(run, made.parts.loss, images, size, classes).to(device)
        network = made.state.network
        loss = made.parts.loss

        def loss_of() -> Tensor:
            terms = loss(network(batch), batch)
            known = loss.counts(batch)
            return sum(
                loss.weights[key] * term.sum / (known[key] if term.count is None else term.count)
                for key, term in terms.items()
                if key != "dropped"
            )

        return measured(options, plain_step(network, loss_of, device), images)

    def theirs(name: str, images: int, size: tuple[int, int], classes: int) -> dict[str, Any]:
        run = compose(options, name)
        loss = config_parts.loss(run.loss, device, [str(number) for number in range(classes)])
        batch = batch_for(run, loss, images, size, classes).to(device)
        network = torchvision_network(batch.instances is not None, classes, options.tiny, min(size))
        network = network.to(device, memory_format=torch.channels_last).train()
        step = plain_step(network, torchvision_loss(network, batch), device)
        return measured(options, step, images) | {"network": type(network).__name__}

    for large, small, images, size, classes in SPEEDS:
        name = small if options.tiny else large
        given = (name, 2, (64, 64), CLASSES) if options.tiny else (name, images, size, classes)
        for way in (ours, plain, theirs):
            title = f"{name} {given[2][0]}x{given[2][1]} x{given[1]}, {way.__name__}"
            report.row("speed", title, lambda way=way, given=given: way(*given))


def part_rates(options: argparse.Namespace, report: Report) -> None:
    """Time a loader alone, steps on a batch that lies on the device, and both together."""
    side, images = (64, 2) if options.tiny else (512, 8)
    steps = 3 if options.tiny else 40

    def measure() -> dict[str, Any]:
        run = segtrain.compose(
            [
                "model=deeplabv3plus_r18",
                "dataset=shapes",
                f"dataset.size=[{side},{side}]",
                f"dataset.crop=[{side},{side}]",
                f"train.batch_size={images}",
                f"train.device={options.device}",
                "train.steps=1000",
                "train.precision=bf16",
                *(["train.workers=0"] if options.tiny else []),
            ]
        )
        threads = torch.get_num_threads()
        world = World(device=torch.device(options.device))
        parts = build_parts(run, world)
        state = new_state(run.train, parts, world)
        batches = train_batches(run, parts, world, 0, 1000)
        made = Trainer(run, parts, state, world, Signals())
        (first,) = next(batches)  # starts the workers
        results: dict[str, Any] = {"workers": parts.workers}
        for way, step in (
            ("loader", lambda: next(batches)),
            ("steps", lambda: made.step(first)),
            ("both", lambda: made.step(next(batches)[0])),
        ):
            step()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            results[f"{way} images/s"] = steps * images / (time.perf_counter() - start)
        torch.set_num_threads(threads)
        return results

    report.row("rates", f"deeplabv3plus_r18, shapes {side} x{images}", measure)


def part_evaluate(options: argparse.Namespace, report: Report) -> None:
    """Time predictions of whole images by the models' own protocols."""
    size = (64, 128) if options.tiny else (1024, 2048)

    def measure(name: str) -> dict[str, Any]:
        run = compose(options, name)
        device = torch.device(options.device)
        network = built(run, CLASSES).to(device, memory_format=torch.channels_last).eval()
        predictor = config_parts.predictor(run, network)
        image = torch.randint(256, (3, *size), dtype=torch.uint8).to(device)
        precision = Precision("bf16", options.device)

        def predict() -> object:
            with torch.inference_mode(), precision:
                return predictor(image, "")

        return measured(options, predict, 1) | {"protocol": type(predictor).__name__}

    for name in ("deeplabv3plus", "pspnet", "mask_rcnn"):
        chosen = f"{name}_r18" if options.tiny else name
        title = f"{chosen} {size[0]}x{size[1]}"
        report.row("evaluate", title, lambda chosen=chosen: measure(chosen))


def part_paste(options: argparse.Namespace, report: Report) -> None:
    """Paste masks that lie on the device, and compare with the CPU's."""
    size, count = ((64, 96), 3) if options.tiny else ((800, 1333), 100)

    def measure() -> dict[str, Any]:
        import bench_paste

        boxes, probabilities = bench_paste.detections(count, 0, size)
        on_device = [each.to(options.device) for each in (boxes, probabilities)]
        here = bench_paste.ours(size, boxes, probabilities)
        there = bench_paste.ours(size, *on_device)
        return {
            "ok": here == there,
            "cpu masks/s": rate(
                options, lambda: bench_paste.ours(size, boxes, probabilities), count
            ),
            "device masks/s": rate(options, lambda: bench_paste.ours(size, *on_device), count),
        }

    report.row("paste", f"{count} masks in {size[0]}x{size[1]}", measure)


def part_crf(options: argparse.Namespace, report: Report) -> None:
    """Run the dense CRF on the device, and compare its marginals with the CPU's."""
    size, classes = ((32, 48), 3) if options.tiny else ((500, 375), 21)

    def measure() -> dict[str, Any]:
        import bench_crf

        from segtrain.inference.crf import DenseCRF

        crf = DenseCRF()
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
        mask = ((rows // 16 + columns // 16) % classes).numpy()
        probabilities = bench_crf.plausible(mask, classes, 0)
        noise = torch.randint(40, (3, *size), generator=torch.Generator().manual_seed(0))
        image = (torch.from_numpy(mask) * 200 // classes + noise).to(torch.uint8)
        on_device = (image.to(options.device), probabilities.to(options.device))
        error = (crf(*on_device).cpu() - crf(image, probabilities)).abs().max().item()
        return {
            "ok": error <= FP32_TOLERANCE,
            "apart": error,
            "cpu images/s": rate(options, lambda: crf(image, probabilities), 1),
            "device images/s": rate(options, lambda: crf(*on_device), 1),
        }

    report.row("crf", f"{size[0]}x{size[1]}, {classes} classes", measure)


class NoCard:
    """Memory that never ends, in place of a GPU's."""

    def available(self) -> int:
        """Return a terabyte."""
        return 1 << 40

    def forget(self) -> None:
        """Do nothing."""

    def peak(self) -> int:
        """Return nothing."""
        return 0


def part_batch(options: argparse.Namespace, report: Report) -> None:
    """Find the batch that fits, and train three steps of it."""
    side, images = (64, 8) if options.tiny else (512, 2048)
    if options.device == "cpu":
        batch_size.memory_of = lambda device: NoCard()

    def measure() -> dict[str, Any]:
        words = [f"dataset.size=[{side},{side}]", f"dataset.crop=[{side},{side}]"]
        words += [f"dataset.train={images}", "train.batch_size=auto"]
        run = compose(options, "deeplabv3plus_r18", "dataset=shapes", *words)
        world = World(device=torch.device(options.device, 0 if options.device == "cuda" else None))
        threads = torch.get_num_threads()
        parts = build_parts(batch_size.to_build(run, world), world)
        found = batch_size.settled(run, None, None, parts, world)
        state = new_state(found.run.train, parts, world)
        for micro_batches in train_batches(found.run, parts, world, 0, 3):
            read([update(found.run, parts, state, micro_batches, world, Signals())])
            state.step += 1
        torch.set_num_threads(threads)
        return {"ok": state.step == 3, "images": found.run.train.global_batch, "said": found.said}

    report.row("batch", f"deeplabv3plus_r18, {side}x{side}", measure)


def part_shares(options: argparse.Namespace, report: Report) -> None:
    """Load and compute for known times, and compare what is told to be waiting for data."""
    cuda = options.device == "cuda"
    steps, reads = 8, 2  # every fourth step is read

    def measure(busy: float, wait: float) -> dict[str, Any]:
        square = torch.ones(256 if options.tiny else 4096, device=options.device).diag()

        def compute(times: int) -> None:
            for _ in range(times):
                torch.mm(square, square)

        def timed(times: int) -> float:
            start = time.perf_counter()
            compute(times)
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - start

        timed(10)
        times = max(1, round(busy * 20 / timed(20)))

        def batches() -> Iterator[None]:
            for _ in range(steps):
                time.sleep(wait)
                yield None

        clock = Clock(0, DeviceIdle() if cuda else None)
        clock.begin()
        for step, _ in enumerate(clock.waiting(batches()), 1):
            compute(times)
            if cuda and step % (steps // reads) == 0:
                torch.cuda.synchronize()
        spent = clock.spent()
        # A GPU has nothing to do after a read, and else as long as loading takes longer.
        expected = reads * wait + (steps - reads) * max(0.0, wait - busy) if cuda else steps * wait
        told = {"data s": spent["data"], "compute s": spent["compute"], "expected data s": expected}
        ok = abs(spent["data"] - expected) < 0.1 * sum(spent.values()) if cuda else None
        return {"ok": ok, **told}

    scale = 0.1 if options.tiny else 1.0
    for name, busy, wait in (("computing longer", 0.08, 0.04), ("loading longer", 0.02, 0.08)):
        report.row("shares", name, lambda b=busy, w=wait: measure(b * scale, w * scale))


def part_sweep(options: argparse.Namespace, report: Report) -> None:
    """Let the launcher train two runs on one device."""
    tiny = ["model=unet", "model.width=8", "dataset.crop=[64,64]", "dataset.train=8"]
    tiny += ["dataset.val=2", "train.steps=2", "train.batch_size=2", "writer=[]"]
    tiny += [f"train.device={options.device}", "train.seed=0,1", "hydra/launcher=gpus"]
    tiny += ["hydra.launcher.jobs_per_gpu=2", "hydra.launcher.jobs=2"]

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "segtrain", "-m", *tiny, f"hydra.sweep.dir={folder}"]
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            ended = subprocess.run(
                command,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": first},
                capture_output=True,
                text=True,
                check=False,
            )
            said = [path.read_text() for path in Path(folder).glob("*/train.log")]
        where = "cuda:0" if options.device == "cuda" else "cpu"
        on_device = sum(f"device {where}," in text for text in said)
        idle = any("used by no process" in text for text in said)
        ok = ended.returncode == 0 and on_device == 2 and not idle
        why = {} if ok else {"note": " ".join(ended.stderr.split())[-200:]}
        return {"ok": ok, "runs": on_device, "code": ended.returncode, **why}

    report.row("sweep", "2 runs on one device", measure)


PARTS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "group": part_group,
    "deterministic": part_deterministic,
    "speed": part_speed,
    "evaluate": part_evaluate,
    "rates": part_rates,
    "paste": part_paste,
    "crf": part_crf,
    "compile": part_compile,
    "batch": part_batch,
    "shares": part_shares,
    "sweep": part_sweep,
    "models": part_models,  # the longest last
    "waits": part_waits,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if a check failed."""
    options = parser.parse_args(arguments)
    for name in options.part or ():
        if name not in PARTS:
            parser.error(f"--part {name}: there are {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: --device cpu --tiny tries every part in small")
    report = Report(options.out, time.monotonic() + 60 * options.minutes)
    for name in options.part or PARTS:
        PARTS[name](options, report)
    failed = [row for row in report.rows if row["ok"] is False]
    left_out = [row for row in report.rows if "seconds" not in row]
    print(
        f"{len(report.rows)} rows, {len(failed)} failed, {len(left_out)} not run; "
        f"written to {options.out}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
