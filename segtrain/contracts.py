"""What a part must offer, as Protocols, and what the parts hand to each other.

The engine knows these types and no others, so it never asks which task it trains. Most Protocols
have a small base class with the usual answers beside the parts: `data.base.BaseDataset`,
`models.base.SegmentationModel`, `losses.base.BaseLoss`, `inference.base.BasePredictor`,
`metrics.base.BaseEvaluator`.

Shapes: B images, H x W pixels, N instances, K classes. Boxes are (x1, y1, x2, y2) in pixels, x2 and
y2 exclusive. Train ids run from 0 to K - 1; IGNORE marks pixels that neither train nor count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from segtrain.structures.class_rows import ClassRows
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Batch, Files, Sample, Target, Truth

Prediction = Tensor | Instances | Segments  # what a predictor gives
# A mask (H, W) uint8 -> a map (H, W) float32, on the host.
MaskMap = Callable[[np.ndarray], np.ndarray]


class Dataset(Protocol):
    """One split of a data set. `data.base.BaseDataset` has the defaults.

    Reading is safe from several threads, and the set can be sent to a worker process.
    """

    labels: LabelMap
    ids: list[str]  # one for each sample, all different
    labelled: bool  # False: the labels are not published, so nothing is learned or measured
    problems: list[str]  # a line for each file or entry that had to be left out

    @property
    def notes(self) -> Sequence[str]:
        """A line for each thing that is unusual in its files, but is read."""
        ...

    @property
    def labelled_with(self) -> Literal["masks", "instances"]:
        """Which field of a sample holds its labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Return a sample to train on. Errors: DataError for a file that cannot be used."""
        ...

    def scored(self, index: int) -> Sample:
        """Return the sample with what the metric compares with."""
        ...

    def target(self, index: int) -> Target:
        """Return what the sample is labelled with, without reading its image."""
        ...

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image."""
        ...

    def files(self, index: int) -> Files | None:
        """Return the files that the sample is read from; None for one that is generated."""
        ...

    def extra_files(self) -> Mapping[str, Path]:
        """Return what is read beside `files`, by names that say nothing of where it lies.

        Those that hold the labels of all images, what only the metric reads; no lists or tables of
        classes, of which `ids` and `labels` tell all.
        """
        ...

    def doubts(self, index: int) -> Sequence[str]:
        """Return what is odd about the labels of a sample, though it may be meant.

        `verify` counts equal lines, so they name no sample.
        """
        ...

    def sizes(self) -> np.ndarray | None:
        """Return (N, 2) height and width of every image; None where each would have to be made."""
        ...

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return the train ids of a label map (H, W) that another program predicted.

        Errors: DataError naming `where`.
        """
        ...


class Augment(Protocol):
    """A random view of a sample, as a pure function of the sample and a seed."""

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Return the view that `seed` stands for: equal seeds give equal bytes."""
        ...


@runtime_checkable
class NamesLabels(Protocol):
    """An augmentation whose settings may name labels: it is told which there are."""

    def check_labels(self, num_classes: int, labelled_with: Literal["masks", "instances"]) -> None:
        """Refuse labels that a data set does not have. Errors: UserError."""
        ...


class Model(Protocol):
    """A network. `models.base.SegmentationModel` has the defaults."""

    @property
    def preprocess(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What turns uint8 RGB (B, 3, H, W) and sizes (B, 2) into the input of the backbone."""
        ...

    @property
    def learns_from(self) -> Literal["masks", "instances"]:
        """Which field of a batch the model, or its loss, learns from."""
        ...

    @property
    def min_train_batch(self) -> int:
        """How many images one process needs in a training batch."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that the model gives in training, with labels."""
        ...

    def class_rows(self) -> Mapping[str, ClassRows] | None:
        """Return which tensors hold the classes and how, by the names of tensors or their layers.

        {}: no tensor does. None: the model does not say.
        """
        ...

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that get the backbone's learning-rate factor."""
        ...

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the tensors that the loss and the predictor read, by name."""
        ...


class Network(Model, nn.Module):
    """A model as `config.parts` returns it: an nn.Module that is also a `Model`.

    It serves annotations only.
    """


class LossTerm(NamedTuple):
    """One summand of the loss: `sum` over its elements, and their `count`.

    `count` is None where it follows from the labels; then `Loss.counts` tells it before the forward
    pass, and the engine sums it over all ranks and micro-batches. A count that depends on the
    output is given here instead. In training a term without either is a plain sum over all ranks
    and micro-batches: nothing divides it.
    """

    sum: Tensor  # scalar, fp32, attached to the graph
    count: Tensor | None = None  # scalar


@runtime_checkable
class Loss(Protocol):
    """A loss. `losses.base.BaseLoss` has the defaults.

    The objective is sum_i weights[i] * sum_i / count_i.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each term by its name."""
        ...

    @property
    def needs(self) -> Collection[str]:
        """The names of the model's outputs that the terms read in training."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar count of each term whose count follows from the labels."""
        ...

    def __call__(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of one micro-batch."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """A loss, or a part of one, whose arguments may name classes: it is told which there are."""

    def name_classes(self, names: Sequence[str]) -> None:
        """Take the classes of the data set, in the order of their train ids. Errors: UserError."""
        ...


@runtime_checkable
class MapsMasks(Protocol):
    """A loss, or a part of one, that needs a map of each mask which only the host can make.

    The data workers make it, so that no step waits for it: it is `Batch.mask_maps`. A batch that
    came another way has none; then the loss makes it itself.
    """

    def mask_map(self) -> MaskMap:
        """Return what makes the map. It is sent to the workers, so it holds no tensor."""
        ...


class Trained(Protocol):
    """A trained network with its own inference, as `Predictor.attach` receives it."""

    network: nn.Module
    labels: LabelMap

    def __call__(self, image: Tensor, sample_id: str = "") -> Prediction:
        """Predict one image (3, H, W) uint8 RGB."""
        ...


class Predictor(Protocol):
    """An inference protocol around a model. `inference.base.BasePredictor` has the defaults."""

    @property
    def model(self) -> nn.Module:
        """The network; whoever predicts sets its mode."""
        ...

    @property
    def plain(self) -> bool:
        """Whether one pass over the untouched image is all, so that `labels` can reuse one."""
        ...

    @property
    def class_agnostic(self) -> bool:
        """Whether objects have no class, so that only a class-agnostic metric can judge them."""
        ...

    @property
    def tag(self) -> str:
        """What is not the plain protocol, for the folder of results; "" for nothing."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what the predictions depend on, as plain values for metrics.json."""
        ...

    def attach(self, load: Callable[[str], Trained], class_names: Sequence[str]) -> None:
        """Load the other trained networks that this inference asks for; `load` takes a run."""
        ...

    def labels(self, output: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the label map of one image of `size` from a forward pass, where `plain`."""
        ...

    def network_output(self, batch: Batch) -> object:
        """Return what the network computes of every image of a batch, for `eval.speed`."""
        ...

    def probabilities(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return (K, H, W) fp32 at the image's own size. Errors: UserError where it gives objects.

        The label map is the class of the largest.
        """
        ...

    def __call__(self, image: Tensor, sample_id: str = "") -> Prediction:
        """Return the label map (H, W) uint8 of an image (3, H, W) uint8 RGB, or scored objects.

        Both are at the image's own size. Our own predictors give objects as `Segments`: memory does
        not grow with their number. `sample_id` tells a predictor with a file of proposals which
        image this is; "" where nobody knows.
        """
        ...


class Evaluator(Protocol):
    """What measures predictions. It counts; nothing is averaged before `compute`.

    `metrics.base.BaseEvaluator` has the defaults.
    """

    protocol: str  # whose numbers these are, in words, for metrics.json
    class_agnostic: bool  # whether classes play no part
    voids: int  # how many values beside the classes a predicted label map may hold
    class_names: list[str]

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image. `target` is the sample's `truth` where it has one."""
        ...

    def state(self) -> dict:
        """Return everything counted so far, as tensors and plain types."""
        ...

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`, one per rank.

        Shards may be uneven; no image may appear twice.
        """
        ...

    def names(self) -> list[str]:
        """Return the name of every number that `compute` can give, before anything is counted."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the benchmark's numbers by their benchmark names, fractions in [0, 1]."""
        ...

    def worst(self, count: int) -> list[tuple[str, float]]:
        """Return (id, score) of the images with the lowest score, worst first.

        They are the same under any sharding.
        """
        ...

    def table(self) -> str:
        """Return the numbers for the terminal."""
        ...

    def counts(self) -> dict[str, Any]:
        """Return what was counted, as plain values by the name of the JSON file; {} for none."""
        ...

    def pictures(self) -> dict[str, np.ndarray]:
        """Return pictures (H, W, 3) of the counts, by file name."""
        ...

    def image_scores(self) -> dict[str, dict[str, float | None]]:
        """Return what each image scores by itself, {id: {name: value}}; {} for none.

        The score that `worst` ranks by comes first; None where an image has none. All images have
        the same names.
        """
        ...


class Writer(Protocol):
    """Where numbers and pictures of a training go beside the run's own files. Rank 0 only."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of `step`, by names such as `train/loss` and `val/mIoU`."""
        ...

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Bring everything to where it belongs. Nothing is written afterwards."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """What a writer may do beyond `Writer`: keep a record of the run, not of its numbers only."""

    def begin(self, settings: Mapping[str, Any]) -> str | None:
        """Open the record, or go on in it, before the first number of this start.

        `settings` are the run's by names such as `optimizer.lr`, as stored: environment variables
        by their names. Returns a line for the log that says where the record is, or None.
        """
        ...

    def complete(self, numbers: Mapping[str, float]) -> None:
        """Take the final numbers of a run that is complete, by names such as `val/mIoU`."""
        ...
