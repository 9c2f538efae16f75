"""Hold what predictors share: the defaults of the contract, and what they ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from segtrain.contracts import Trained
from segtrain.errors import InternalError, UserError
from segtrain.structures.samples import Batch


class BasePredictor:
    """Hold the members of `contracts.Predictor` that most predictors have in common.

    A subclass sets `model` and defines `settings` and `__call__`; the rest has defaults.
    """

    model: nn.Module
    # Whether the objects have no class, so that only a class-agnostic metric can judge them.
    class_agnostic: bool = False

    @property
    def plain(self) -> bool:
        """Tell whether one forward pass over the untouched image is all there is.

        Then `labels` can reuse the pass that the validation loss needs anyway, which halves the
        time of a validation.
        """
        return False

    @property
    def tag(self) -> str:
        """Return what is not the plain protocol, in a few words for the folder of results."""
        return ""

    def settings(self) -> dict[str, Any]:
        """Return what the predictions depend on, as plain values for metrics.json."""
        return {}

    def attach(self, load: Callable[[str], Trained], class_names: Sequence[str]) -> None:
        """Load the other trained networks that this inference asks for; most ask for none.

        `load` gives the network of a run, `class_names` are the classes of this one.
        """

    def probabilities(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the probabilities (K, H, W) fp32 of an image (3, H, W) uint8 RGB, at its own size.

        They sum to one, and are what the labels are the largest of. Errors: UserError for a
        predictor of objects, which have scores instead.
        """
        raise UserError(
            f"{type(self).__name__} gives objects with a score each; probabilities are those of "
            "label maps"
        )

    def network_output(self, batch: Batch) -> object:
        """Return what the network computes of every image of a batch, for `eval.speed`.

        Only where that is not its forward pass does a predictor of its own say so.
        """
        return self.model(batch)

    def labels(self, output: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the label map of an image of `size` (height, width) from a finished forward pass.

        Only a `plain` predictor can. Errors: InternalError for every other.
        """
        raise InternalError(f"{type(self).__name__} needs forward passes of its own")


# What a predictor asks of its model. `isinstance` with one of these looks for the methods, so a
# model of somebody else's package needs no base class of ours.


@runtime_checkable
class Detector(Protocol):
    """A two-stage model: boxes of classes first, then the masks of the boxes that remain."""

    def features(self, batch: Batch) -> list[Tensor]:
        """Return the feature maps that both stages read."""
        ...

    def detect(self, features: list[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each image scores (n, K) and boxes (n, K, 4) in the batch's pixels."""
        ...

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return probabilities (N, M, M) of the masks inside `boxes`."""
        ...


@runtime_checkable
class MaskProposer(Protocol):
    """A model that proposes masks of anything."""

    def propose_masks(self, batch: Batch, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return for each image at most `count` regions (n, 4), scores (n,) and masks (n, M, M)."""
        ...


@runtime_checkable
class BoxProposer(Protocol):
    """A model that proposes boxes of anything."""

    def propose(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return for each image boxes (n, 4) in the batch's pixels and scores (n,)."""
        ...


@runtime_checkable
class InclusiveBoxes(Protocol):
    """A model that says whether its boxes count their last pixel, as layers/regions.py has it.

    Those of a model that does not say are exclusive.
    """

    inclusive_boxes: bool


@runtime_checkable
class InclusiveDetector(Protocol):
    """A detector that refines inclusive boxes in the image's own pixels, as Detectron does."""

    inclusive_boxes: bool

    def detect(
        self, features: list[Tensor], sizes: Tensor, growth: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what `Detector.detect` does; `growth` (4,) is that of the image, x, y, x, y."""
        ...


@runtime_checkable
class ShiftedMasks(Protocol):
    """A detector that says how far its masks lie from their boxes; those of others lie in them."""

    mask_shift: float  # pixels of the model's input, to the right and below


@runtime_checkable
class Tiled(Protocol):
    """A model without padding: its output is smaller than its input by `margin` on each side."""

    margin: int  # pixels; 0 for a variant that pads

    def tile(self, batch: Batch) -> Tensor:
        """Return logits (B, K, h, w) of the pixels that lie `margin` or more inside the batch."""
        ...


def inclusive(model: object) -> bool:
    """Tell whether the boxes of a model are inclusive."""
    return isinstance(model, InclusiveBoxes) and model.inclusive_boxes


def mask_shift(model: object) -> float:
    """Return how far the masks of a model lie from their boxes, in pixels of its input."""
    return model.mask_shift if isinstance(model, ShiftedMasks) else 0.0


def view_tags(scales: Sequence[float], flip: bool) -> list[str]:
    """Return the words that name several views of an image; none for the image as it is."""
    words = []
    if list(scales) != [1.0]:
        words.append("scales_" + "_".join(f"{scale:g}" for scale in scales))
    if flip:
        words.append("flip")
    return words
