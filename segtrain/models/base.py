"""The base class of every system.

It holds what the engine asks of a model, with the answers that most systems give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn

from segtrain.layers.preprocess import Preprocess
from segtrain.structures.class_rows import ClassRows


class SegmentationModel(nn.Module):
    """A network whose `forward(batch)` gives the tensors that a loss reads, by name.

    Every system keeps its feature extractor in `backbone`, and systems on the same backbone class
    name its tensors alike: `train.init` carries a backbone from any system to any other. What a
    system has of a feature pyramid is `pyramid`, and is carried too where the shapes agree.

    Every system of ours takes `input`, what its backbone reads: a name such as "caffe", or the
    values (layers/preprocess.py); None is what goes with the backbone's weights.

    A subclass sets `backbone` and `preprocess` in its constructor, and overrides what differs.
    """

    preprocess: Preprocess
    learns_from: ClassVar[Literal["masks", "instances"]] = "masks"  # which field of a `Batch`

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch."""
        return 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training.

        Targets, which instance systems give beside them as NAME_target, are left out.
        """
        return ("logits",)

    def class_rows(self) -> dict[str, ClassRows] | None:
        """Return which tensors hold the classes and how, by the names of tensors or their layers.

        By this `train.init` gives each class the rows of its namesake. {}: no tensor holds any.
        None: the model does not say, and classifiers are known by their shapes, where these differ.
        """
        return None

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that get the backbone's learning-rate factor."""
        return self.get_submodule("backbone").parameters()
