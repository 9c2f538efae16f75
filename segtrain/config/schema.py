"""The typed schema of a run, and what no single field of it can check.

Units stand in the `help` of every field; `segtrain --help` prints them. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.config import places
from segtrain.config.bounds import (
    COUNT,
    IMAGES,
    PROCESSES,
    SEED,
    UPDATES,
    WORKERS,
    ZOOM,
    Range,
    check_range,
)
from segtrain.config.old_names import VERSION
from segtrain.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries conf/ inside the package; a checkout has it beside the package.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
# The settings that take one of a few words, with these.
CHOICES = {
    "train.precision": PRECISIONS,
    "train.device": DEVICES,
    "train.non_finite": ("raise", "skip"),
    "train.monitor_mode": ("max", "min"),
    "train.bad_samples": ("raise", "skip"),
    "eval.weights": ("best", "latest"),
    "eval.prediction_ids": ("raw", "train"),
}


def _option(default: Any, text: str, allowed: Range | None = None) -> Any:
    """Return a dataclass field with a default, the help line that states its unit, and a range."""
    return field(default=default, metadata={"help": text, "range": allowed})


@dataclass
class TrainConf:
    """How long, how much at a time, on what."""

    steps: int = _option(1000, "optimiser updates in the whole run", UPDATES)
    begin: int = _option(
        0,
        "updates that the run which this one extends has made; extend=RUN writes it",
        Range(0, 10**9),
    )
    batch_size: int | str = _option(
        16,
        "images per update, over all processes and micro-batches (the GLOBAL batch); auto: as many "
        "as a GPU's memory holds, found before the first step and stored",
        IMAGES,
    )
    accumulate: int | str = _option(
        1,
        "micro-batches per update and process; needs less memory, gives the same gradient; auto: "
        "one, and twice as many each time a GPU runs out of memory",
        IMAGES,
    )
    aspect_groups: bool = _option(
        False, "batches of wide or of tall images only: less padding with augment=detection"
    )
    scale_recipe: bool = _option(
        False,
        "under a recipe, for another train.batch_size: as many images in all and in the warm-up, "
        "SGD's rate in proportion; what you set stays",
    )
    seed: int = _option(0, "everything random is a function of (seed, position)", SEED)
    precision: str = _option(
        "bf16", "fp32, bf16 or fp16 (with loss scaling); losses are always fp32"
    )
    device: str = _option("auto", "auto, cpu or cuda")
    processes: int | None = _option(
        None, "processes on this machine; null: one per GPU, one on the CPU", PROCESSES
    )
    threads: int | None = _option(
        None, "CPU threads per process; null: cores / processes", PROCESSES
    )
    workers: int | None = _option(
        None, "loader processes per training process; null: 4 per GPU, 0 on the CPU", WORKERS
    )
    clip: float | None = _option(
        None, "largest gradient norm (2-norm over all parameters); null: no clipping"
    )
    non_finite: str = _option(
        "raise",
        "what a loss or gradient that is not finite does: raise ends the run, skip leaves the "
        "update out, at most 10 in a row and a thousandth of train.steps",
    )
    ema: float | None = _option(
        None, "decay of an exponential moving average of the weights, e.g. 0.999; null: off"
    )
    channels_last: bool = _option(True, "memory layout NHWC, faster with bf16 and on GPUs")
    compile: bool = _option(False, "torch.compile the model")
    deterministic: bool = _option(False, "on CUDA: deterministic kernels only (the CPU always is)")
    sync_bn: bool = _option(True, "on several GPUs: batch statistics over all of them")
    verify: bool = _option(True, "check every image and mask before the first step of a new run")
    bad_samples: str = _option(
        "raise",
        "a training sample that cannot be read: raise (save, end with 65), or skip (the next one "
        "takes its place; at most 0.1 % of the samples, and 1 at least)",
    )
    # Both are chosen by hand, so that no run which goes on is ended.
    watchdog: float | None = _option(
        20.0, "median steps without a sign of life after which a run is ended; null: never"
    )
    watchdog_floor: float = _option(
        300.0, "seconds that the watchdog waits at least; six times as long for what is no step"
    )
    init: str | None = _option(
        None, "start from the weights of this RUN or FILE; classes are matched by name"
    )
    bn_batches: int | None = _option(
        None,
        "batches per process that batch norm statistics are estimated from before a validation; "
        "null: running ones",
        COUNT,
    )
    unfold_batches: int | None = _option(
        None,
        "batches per process that folded batch norms get statistics from before the first step, "
        "which leaves what they compute; null: they stay",
        COUNT,
    )
    eval_every: int | None = _option(
        None, "steps between validations; null: about five in the run", UPDATES
    )
    save_every: int | None = _option(
        None, "steps between checkpoints; null: at validations only", UPDATES
    )
    # Two, chosen by hand: if the newest is damaged, there is one before it.
    keep: int = _option(2, "newest checkpoints kept, beside the best ones", COUNT)
    keep_best: int = _option(1, "best checkpoints kept, by train.monitor", COUNT)
    monitor: str = _option(
        "mIoU",
        "logged scalar that decides which checkpoint is best; train/NAME for a training value",
    )
    monitor_mode: str = _option("max", "max or min")
    patience: int | None = _option(
        None, "validations without a better monitored value before stopping; null: never", COUNT
    )

    @property
    def finds_batch(self) -> bool:
        """Whether the batch is still to be found, by the memory of the GPU."""
        return self.batch_size == "auto"

    @property
    def global_batch(self) -> int:
        """The images per update. Errors: UserError while they are still to be found."""
        if isinstance(self.batch_size, str):
            raise UserError(
                f"train.batch_size={self.batch_size}: only a training finds it; give a number"
            )
        return self.batch_size

    @property
    def fits_itself(self) -> bool:
        """Whether the number of micro-batches follows the memory of the GPU."""
        return self.accumulate == "auto"

    @property
    def micro_batches(self) -> int:
        """The micro-batches per update and process that the loader gives."""
        return 1 if isinstance(self.accumulate, str) else self.accumulate


@dataclass
class EvalConf:
    """How a checkpoint is measured; null leaves the choice to `inference`."""

    scales: list[float] | None = _option(
        None, "image scales averaged, e.g. [0.5,1,1.5]; null: as in inference", ZOOM
    )
    flip: bool | None = _option(None, "average the mirrored image in; null: as in inference")
    crf: bool | None = _option(
        None,
        "refine labels with the CRF of inference.crf, DeepLabv2's where that is null; "
        "null: as in inference",
    )
    loss: bool = _option(
        True, "also report the loss (one forward pass more where inference is not plain)"
    )
    # Eight, chosen by hand: as many pictures as one looks at.
    worst: int = _option(
        8, "images with the lowest mIoU that are listed and drawn", Range(0, 10**4)
    )
    cost: bool = _option(
        False, "also count the FLOPs of one image, into cost.json (one prediction more)"
    )
    speed: bool = _option(
        False, "also measure how long one image takes, and the memory, into speed.json"
    )
    speed_batch: int = _option(
        8, "the larger batch that the network's speed is measured with, beside 1", Range(1, 10**5)
    )
    # Twenty, chosen by hand: the 95th percentile is then that of the second slowest.
    speed_repetitions: int = _option(20, "passes of which it is the speed", Range(1, 10**6))
    processes: int | None = _option(
        None, "processes that share the images; null: one per GPU, one on the CPU", PROCESSES
    )
    weights: str = _option("best", "best or latest checkpoint of a run folder")
    submission: str | None = _option(
        None, "new folder for what the benchmark's server takes; null: none"
    )
    prediction_ids: str = _option(
        "raw", "ids in label maps of predictions=DIR: raw (the benchmark's own) or train"
    )
    output: str | None = _option(
        None, "folder for metrics.json and pictures; null: eval/ inside the run folder"
    )


@dataclass
class LogConf:
    """What is written down while training."""

    # Both are chosen by hand: a curve with enough points, and pictures that one looks at.
    every: int = _option(10, "steps between lines in metrics.jsonl", UPDATES)
    progress: bool = _option(True, "progress bar, or a line every 15 s where stderr is a file")
    images: int = _option(4, "validation images drawn at each validation", Range(0, 10**4))


@dataclass
class RunConf:
    """A whole run. The parts are `_target_` nodes that only `config.parts` turns into objects."""

    version: int = VERSION  # of the names in this config, see config.old_names
    recipe: str | None = None  # the published recipe that it takes its values from
    dataset: Any = MISSING
    metric: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    augment: Any = MISSING
    inference: Any = MISSING
    writer: dict[str, Any] = field(default_factory=dict)  # name -> node, none to any number
    train: TrainConf = field(default_factory=TrainConf)
    eval: EvalConf = field(default_factory=EvalConf)
    log: LogConf = field(default_factory=LogConf)


PARTS = ("dataset", "metric", "model", "loss", "optimizer", "schedule", "augment", "inference")


def typed(plain: Mapping[str, Any] | Any, where: str = "config") -> RunConf:
    """Return a plain mapping, or a composed config, as a checked run; interpolations are resolved.

    `where` names it in messages. Errors: UserError on unknown keys, wrong types and unresolvable
    values.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConf), plain)
        text = OmegaConf.create(OmegaConf.to_container(merged, resolve=False))
        with places.environment_as_text():
            told = OmegaConf.to_container(text, resolve=True)
        places.check_environment(told)  # before a message can hold what a variable holds
        run = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}: {one_line(error)}") from error
    assert isinstance(run, RunConf)
    places.remember(told, asdict(run))
    cross_check(run)
    return run


def one_line(error: BaseException) -> str:
    """Return the beginning of a library's message as one line, without its bookkeeping."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("object_type", "reference_type"))]
    # OmegaConf says what, which value and where within four lines; Hydra then lists its folders.
    return " ".join(kept[:4]).replace("full_key: ", "at ")


def cross_check(run: RunConf) -> None:
    """Check what no single field can know. Errors: UserError naming key, value and way out."""
    train = run.train
    if run.version != VERSION:
        raise UserError(f"version={run.version}: segtrain writes this itself; leave it out")
    for key, allowed in CHOICES.items():
        group, name = key.split(".")
        _choice(key, vars(vars(run)[group])[name], allowed)
    for group, node in {"train": train, "eval": run.eval, "log": run.log}.items():
        for option in fields(node):
            if allowed := option.metadata["range"]:
                given = vars(node)[option.name]
                for value in given if isinstance(given, list) else [given]:
                    if value is not None and not isinstance(value, str):
                        check_range(f"{group}.{option.name}", value, allowed)
    for key, value in {"batch_size": train.batch_size, "accumulate": train.accumulate}.items():
        if isinstance(value, str) and value != "auto":
            raise UserError(f"train.{key}={value}: give a whole number, or auto")
    if train.finds_batch:
        check_found(train)
    if not 0 <= train.begin < train.steps:
        raise UserError(f"train.begin={train.begin}: lies before train.steps={train.steps}")
    if train.ema is not None and not 0 < train.ema < 1:
        raise UserError(
            f"train.ema={train.ema}: a decay lies between 0 and 1, e.g. 0.999; null switches it off"
        )
    if train.clip is not None and not 0 < train.clip < math.inf:
        raise UserError(f"train.clip={train.clip}: a norm is above 0; null switches clipping off")
    if train.watchdog is not None and not 1 < train.watchdog < math.inf:
        raise UserError(
            f"train.watchdog={train.watchdog}: median steps, more than 1; null switches it off"
        )
    if not 0 < train.watchdog_floor < math.inf:
        raise UserError(f"train.watchdog_floor={train.watchdog_floor}: seconds, more than 0")
    if train.processes is not None and not train.finds_batch:
        check_batch(train, train.processes)


ON_A_CPU = (
    "train.batch_size=auto: finds the largest batch in a GPU's memory, and this run computes on "
    "the CPU; give a number, such as train.batch_size=16"
)


def check_found(train: TrainConf) -> None:
    """Check that a batch can be found. Errors: UserError."""
    if train.device == "cpu":
        raise UserError(ON_A_CPU)
    if train.fits_itself:
        raise UserError(
            "train.batch_size=auto: with train.accumulate=auto every batch fits; give a number to "
            "one of them"
        )


def check_batch(train: TrainConf, processes: int) -> None:
    """Check that the global batch splits evenly. Errors: UserError naming sizes that would."""
    share = processes * train.micro_batches
    if train.global_batch % share:
        below = train.global_batch // share * share
        above = below + share
        fits = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"train.batch_size={train.batch_size} does not split over {processes} processes x "
            f"{train.micro_batches} micro-batches; {fits} would"
        )


def _choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(
            f"{key}={value}: not one of {', '.join(allowed)}.{did_you_mean(value, allowed)}"
        )


@dataclass(frozen=True)
class DatasetKeys:
    """The keys of a dataset node that belong to the run, and not to the data set's constructor."""

    train_split: str
    val_split: str
    split: str | None = None  # measured by segeval instead of val_split
    crop: list[int] | None = None  # height, width in pixels, of training
    steps: int | None = None  # updates, what train.steps is by default
    batch_size: int | None = None  # global, what train.batch_size is by default
    monitor: str | None = None  # number, what train.monitor is by default
    submission: str | None = None  # form of the files that the benchmark's server takes
    cache: str | None = None  # folder of the fast cache
    manifest: str | None = None  # file with the SHA-256 of every file, checked before each start
    allow_change: bool | None = None  # go on with data that changed; holds for one start

    @property
    def measured_split(self) -> str:
        """The split that is validated and scored: the one asked for, else that of validation."""
        return self.split or self.val_split


DATASET_RUN_KEYS = tuple(option.name for option in fields(DatasetKeys))
ALLOW_CHANGE = "allow_change"
# No data set's yaml has them: they belong to the files of one user.
ONLY_TYPED = ("manifest", ALLOW_CHANGE)
_NUMBER = (int, "a whole number")
_DATASET_KINDS = {
    "crop": (list, "[height, width]"),
    "steps": _NUMBER,
    "batch_size": _NUMBER,
    ALLOW_CHANGE: (bool, "true or false"),
}


def dataset_keys(node: Mapping[str, Any]) -> DatasetKeys:
    """Return the run's own keys of a dataset node. Errors: UserError for a missing or wrong one."""
    given = {key: node[key] for key in DATASET_RUN_KEYS if node.get(key) is not None}
    for key in ("train_split", "val_split"):
        if key not in given:
            raise UserError(f"dataset.{key}: the data set needs a value here, the name of a split")
    for key, value in given.items():
        kind, words = _DATASET_KINDS.get(key, (str, "a name"))
        if type(value) is not kind:
            form = (
                f", dataset.crop=[{value},{value}]" if key == "crop" and type(value) is int else ""
            )
            raise UserError(f"dataset.{key}={value!r:.80}: expected {words}{form}")
    return DatasetKeys(**given)


def dataset_arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a dataset node that its constructor takes."""
    return {key: value for key, value in node.items() if key not in DATASET_RUN_KEYS}


def describe_schema() -> str:
    """Return every key of the run's own groups with its default and unit, for `--help`."""
    lines = []
    for group, node in {"train": TrainConf(), "eval": EvalConf(), "log": LogConf()}.items():
        for option in fields(node):
            shown = f"{group}.{option.name}={_as_yaml(option.default)}"
            lines.append(f"  {shown:<32} {option.metadata['help']}")
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
