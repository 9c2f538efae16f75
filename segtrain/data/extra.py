"""What albumentations does to a finished crop. Its only home.

Colours, blur and what a person asks for by name (`Extra`). It takes 2.5 s to import, so that is
done where one of them is asked for; most runs ask for none.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np

from segtrain.data.view import instances_in
from segtrain.errors import UserError, did_you_mean, words_of
from segtrain.structures.samples import IGNORE, Sample


class Look(Protocol):
    """What changes an image's colours and sharpness: an `albumentations.Compose`."""

    def set_random_state(
        self, random_generator: np.random.Generator, py_random: random.Random
    ) -> None:
        """Take these generators for everything that is drawn from now on."""
        ...

    def __call__(self, *, image: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return {"image": what was made of it}."""
        ...


def make_look(
    color: float, blur: float, sigma: tuple[float, float] = (0.5, 2.0), kernel: int = 0
) -> Look:
    """Return what jitters the colours and blurs, see `Augment`; either may be 0."""
    albumentations = _library()
    steps = []
    if color:
        factors = (1 - color, 1 + color)
        jitter = albumentations.ColorJitter(factors, factors, factors, color / 4, p=1)
        steps.append(jitter)
    if blur:
        soften = albumentations.GaussianBlur(
            blur_limit=(kernel, kernel) if kernel else 0, sigma_limit=(sigma[0], sigma[1]), p=blur
        )
        steps.append(soften)
    # A misspelt argument of a transform is only a warning unless strict.
    return albumentations.Compose(steps, strict=True)


class Extra:
    """`extra(sample, rng, seed) -> Sample`: transforms of albumentations by name, in this order.

    `steps` are [CLAHE, {Blur: {p: 0.2}}, {Affine: {rotate: [-10, 10]}}, ...]; arguments are
    numbers, text, true, false, null and lists of them. Image, label mask and instances stay in
    step: new pixels are `mean`, where the transform takes a colour, and of no label, and an
    instance that is left without a pixel is dropped. `size` (height, width) is that of every view,
    None where they differ.

    Errors: UserError for a transform or an argument that there is not, and for one that changes the
    size or the form of an image, or makes labels that there were not.
    """

    def __init__(
        self,
        steps: Sequence[Mapping[str, Any] | str],
        mean: tuple[int, int, int],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.steps = [_named(step) for step in steps]
        self.mean = mean
        self.sizes = TRIED if size is None else (size,)
        self._composed: dict[int, Any] = {}  # label of new pixels -> albumentations.Compose
        for step in self.steps:
            for each in self.sizes:
                _try(step, mean, each)

    def check_labels(self, num_classes: int, labelled_with: Literal["masks", "instances"]) -> None:
        """Refuse what makes labels that the data set does not have. Errors: UserError."""
        of_objects = labelled_with == "instances"
        for step in self.steps:
            for key, label in step.fills.items():
                here = f"augment.extra: {step.name}.{key}={label}"
                if of_objects and label != 0:
                    raise UserError(
                        f"{here}: new pixels would belong to every object; leave it out, or give 0"
                    )
                if label >= num_classes and label != IGNORE:
                    raise UserError(
                        f"{here}: the data set has {num_classes} classes; give a train id from 0 "
                        f"to {num_classes - 1}, or {IGNORE} for pixels that are ignored"
                    )
            for size in self.sizes if of_objects else ():
                _try(step, self.mean, size, of_objects=True)

    def __call__(self, sample: Sample, rng: np.random.Generator, seed: int) -> Sample:
        """Return the sample with its image, and its labels in step.

        Errors: UserError where a transform does what it did not when it was tried.
        """
        instances = sample.instances
        void = IGNORE if instances is None else 0
        if void not in self._composed:
            made = [_albumentations(step, void, self.mean) for step in self.steps]
            self._composed[void] = _compose(made)
        compose = self._composed[void]
        compose.set_random_state(rng, random.Random(seed))
        labels: dict[str, Any] = {"mask": sample.mask}
        if instances is not None:
            masks = list(instances.masks.numpy().view(np.uint8))
            labels = {"masks": masks} if masks else {}
        try:
            done = compose(image=sample.image, **labels)
        except Exception as error:
            self._refuse(sample, words_of(error))
        image = np.ascontiguousarray(done["image"])
        if _form(image) != _form(sample.image):
            self._refuse(sample, f"{_form(sample.image)} became {_form(image)}")
        if sample.mask is not None:
            mask = np.ascontiguousarray(done["mask"])
            fills = [IGNORE, *(label for step in self.steps for label in step.fills.values())]
            if sample.mask is not mask and not _same_labels(sample.mask, mask, fills):
                self._refuse(sample, "made labels that there were not")
            return replace(sample, image=image, mask=mask)
        assert instances is not None
        shown = [np.ascontiguousarray(mask) for mask in done.get("masks", [])]
        if any(mask.max() > 1 for mask in shown):
            self._refuse(sample, "made objects of more than 0 and 1")
        size = (image.shape[0], image.shape[1])
        return replace(sample, image=image, instances=instances_in(shown, instances, size))

    def _refuse(self, sample: Sample, what: str) -> NoReturn:
        """Raise UserError naming the transform that fails alone on such a view, else all."""
        height, width, _ = sample.image.shape
        for step in self.steps:
            _try(step, self.mean, (height, width), of_objects=sample.instances is not None)
        names = ", ".join(step.name for step in self.steps)
        raise UserError(f"augment.extra: {names}: in a view of {sample.id}: {what}")


class Step(NamedTuple):
    """A transform by its name, and its arguments."""

    name: str
    arguments: dict[str, Any]

    @property
    def fills(self) -> dict[str, int]:
        """Return the labels that it was told to give to new pixels, by the arguments' names."""
        told = {key: self.arguments.get(key) for key in FILLS}
        return {key: label for key, label in told.items() if label is not None}


PLAIN = (bool, int, float, str, type(None))
FUNCTIONS = ("Lambda",)  # take a function, which no text can name
FILLS = ("fill_mask", "mask_drop_value")  # arguments that are the label of new pixels
# Sizes of views that a transform is tried on where views differ in size. The sides are no multiples
# of anything, and either may be the longer one.
TRIED = ((67, 81), (93, 59))
TRIES = 3


def _named(step: Any) -> Step:
    """Return a step of `augment.extra`. Errors: UserError."""
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, Mapping) or len(step) != 1:
        raise UserError(f"augment.extra: {step!s:.80} is no transform; write {{CLAHE: {{p: 0.2}}}}")
    ((name, arguments),) = step.items()
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise UserError(f"augment.extra: {name} needs its arguments by name, {name}: {{p: 0.2}}")
    for key, value in arguments.items():
        if not _is_plain(value):
            raise UserError(
                f"augment.extra: {name}.{key}: arguments are numbers, text and lists of them"
            )
    share = arguments.get("p", 1.0)
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise UserError(f"augment.extra: {name}.p={share!s:.40}: give a probability from 0 to 1")
    made = Step(str(name), {str(key): value for key, value in arguments.items()})
    for key, label in made.fills.items():
        if type(label) is not int or not 0 <= label <= IGNORE:
            raise UserError(
                f"augment.extra: {name}.{key}={label!s:.40}: give a train id, or {IGNORE} for "
                "pixels that are ignored"
            )
    return made


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _library() -> Any:
    # Without this the import of albumentations sends a request to the network.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _albumentations(step: Step, void: int, mean: tuple[int, ...], always: bool = False) -> Any:
    """Return the transform of a step; `void` labels new pixels, `always` draws no chance.

    Errors: UserError.
    """
    library = _library()
    known = {
        name: value
        for name, value in vars(library).items()
        if inspect.isclass(value)
        and issubclass(value, library.BasicTransform)
        and name not in FUNCTIONS
    }
    made = known.get(step.name)
    if made is None:
        raise UserError(
            f"augment.extra: albumentations has no transform `{step.name}`."
            f"{did_you_mean(step.name, known)}"
        )
    parameters = inspect.signature(made).parameters
    for key in step.arguments:
        if key not in parameters:
            raise UserError(
                f"augment.extra: {step.name} has no argument `{key}`."
                f"{did_you_mean(key, parameters)}"
            )
    arguments = {key: _tuples(value) for key, value in step.arguments.items()}
    # Those that move pixels fill with 0 unless told; dropouts leave the labels as they are.
    if "fill_mask" in parameters and parameters["fill_mask"].default == 0:
        arguments = {"fill_mask": void, **arguments}
        if "tuple" in str(parameters["fill"].annotation):  # MaskDropout takes one number
            arguments = {"fill": tuple(mean), **arguments}
    if always and "p" in parameters:
        arguments["p"] = 1.0
    try:
        return made(**arguments)
    except Exception as error:
        raise UserError(
            f"augment.extra: {step.name} refuses these values: {words_of(error)}"
        ) from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _compose(made: list[Any]) -> Any:
    return _library().Compose(made)


def _try(
    step: Step, mean: tuple[int, ...], size: tuple[int, int], of_objects: bool = False
) -> None:
    """Let a transform show on a few samples of `size` that it keeps size, form and labels.

    Errors: UserError.
    """
    compose = _compose([_albumentations(step, 0 if of_objects else IGNORE, mean, always=True)])
    given = [0, 1] if of_objects else [1, 3, IGNORE]
    fills = list(step.fills.values())
    for seed in range(TRIES):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        mask = rng.choice(np.array(given, np.uint8), size)
        compose.set_random_state(rng, random.Random(seed))
        try:
            done = compose(image=image, **({"masks": [mask]} if of_objects else {"mask": mask}))
        except Exception as error:
            raise UserError(
                f"augment.extra: {step.name} cannot stand here: {words_of(error)}"
            ) from None
        if _form(done["image"]) != _form(image):
            raise UserError(
                f"augment.extra: {step.name} makes an image of another size or form "
                f"({_form(done['image'])} of {_form(image)}); dataset.crop, augment.scale and "
                "augment.shorter say how large it is"
            )
        shown = done["masks"][0] if of_objects else done["mask"]
        if not _same_labels(mask, shown, fills):
            strange = set(np.unique(shown).tolist()) - {*given, *fills}
            raise UserError(
                f"augment.extra: {step.name} makes labels that there were not "
                f"({min(strange, default=_form(shown))})"
            )


def _form(pixels: Any) -> str:
    """Return size, channels and type of an array or a tensor, as an error says them."""
    return f"{' x '.join(map(str, pixels.shape))} {pixels.dtype}"


def _same_labels(before: np.ndarray, after: np.ndarray, fills: Sequence[int]) -> bool:
    """Tell whether a mask kept its form, and has labels of before, `fills` only."""
    if after.shape != before.shape or after.dtype != np.uint8:
        return False
    known = np.zeros(IGNORE + 1, bool)
    known[before] = True
    known[list(fills)] = True
    return bool(known[after].all())
