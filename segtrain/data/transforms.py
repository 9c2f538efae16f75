"""Augmentation: a random view of a sample as a function of a seed. The only home of albumentations.

Colours, blur and what a person asks for by name (`Extra`) come from albumentations, and work on the
finished crop. It takes 2.5 s to import, so that is done where one of them is asked for; most runs
ask for none.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np

from segtrain.data.view import (
    Padding,
    View,
    draw_bend,
    draw_view,
    instances_in,
    padded,
    show_sample,
    source_size,
)
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


class Augment:
    """`augment(sample, seed) -> Sample`: a random view of exactly `crop` (height, width).

    Equal seeds give equal bytes. The annotation is a label mask or instances. Of an instance that
    the view shows in part, mask and box are cut; one that it does not show is dropped, so a sample
    may be left without any.

    scale: range of the uniform factor; with `scale_step` > 0 one of low, low + step, ..., high
    (DeepLab: 0.25).
    short_side: in place of `scale`: range of the shorter side of the whole scaled image, a whole
    number of pixels (PyTorch-Encoding 0.5.0: 260 to 1040).
    flip, blur: probability of mirroring, of a Gaussian blur.
    blur_sigma: range of its deviation in pixels (0.5 to 2 is chosen by hand).
    blur_kernel: side of its kernel in pixels, odd; 0: as wide as the deviation needs.
    rotate: largest angle in degrees (PSPNet: 10).
    rotate_share: share of the samples that are turned; the others train without padding in their
    corners (semseg: 0.5; PyTorch-Encoding before 0.5.0: all).
    color: jitter of brightness, contrast and saturation by factors 1 +- color, of hue by
    +- color / 4 (a quarter, as in SimCLR, arXiv:2002.05709).
    mean: RGB of the padding, which lies all round where rotated or bent.
    padding: where it lies if the scaled image is smaller than the crop: "mirrored", right (left
    where mirrored) and below; "middle", all round (semseg); "end", right and below, mirrored or not
    (PyTorch-Encoding).
    padding_label: what it is in a label mask: None, IGNORE; 0, the first class, in PyTorch-Encoding
    the background of VOC. It is in no instance.
    elastic: standard deviation in pixels of the crop of the displacements on a 3 x 3 grid that bend
    it (U-Net: 10).
    extra: transforms of albumentations that follow, see `Extra`.
    blank: a network sees exactly zero in the padding, behind its own normalisation, instead of
    `mean`, which is in whole bytes (DeepLab's releases pad with their floating-point mean, and with
    127.5 where the input is scaled to [-1, 1]). Only pictures then show `mean`.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        scale_step: float = 0.0,
        flip: float = 0.5,
        rotate: float = 0.0,
        color: float = 0.0,
        blur: float = 0.0,
        mean: tuple[int, int, int] = (124, 116, 104),
        elastic: float = 0.0,
        short_side: tuple[int, int] | None = None,
        blur_sigma: tuple[float, float] = (0.5, 2.0),
        blur_kernel: int = 0,
        padding: Padding = "mirrored",
        padding_label: int | None = None,
        rotate_share: float = 0.5,
        extra: list[dict] | None = None,
        blank: bool = False,
    ) -> None:
        shares = {"flip": flip, "color": color, "blur": blur, "rotate_share": rotate_share}
        check_settings(crop, scale, scale_step, shares)
        check_blur(blur_sigma, blur_kernel)
        if short_side is not None and not 1 <= short_side[0] <= short_side[1]:
            raise UserError(
                f"augment.short_side={list(short_side)}: give [lowest, highest] in pixels, from 1 "
                "on and in this order, or null for augment.scale"
            )
        if padding not in get_args(Padding):
            raise UserError(
                f"augment.padding={padding} is unknown. Known: {', '.join(get_args(Padding))}"
            )
        if padding_label is not None and not 0 <= padding_label <= IGNORE:
            raise UserError(
                f"augment.padding_label={padding_label}: give a train id from 0 to {IGNORE}, or "
                "null for pixels that are ignored"
            )
        if elastic < 0:
            raise UserError(
                f"augment.elastic={elastic}: give 0, "
                "or the standard deviation of displacements in pixels"
            )
        if blank and (rotate or elastic or extra):
            raise UserError(
                f"augment.blank=true with augment.rotate={rotate:g} augment.elastic={elastic:g} "
                f"augment.extra={extra}: only upright crops are blanked; set these to 0, 0 and "
                "null, or augment.blank=false"
            )
        self.crop = (crop[0], crop[1])
        self.scale = (scale[0], scale[1])
        self.scale_step = scale_step
        self.flip = flip
        self.rotate = rotate
        self.rotate_share = rotate_share
        self.mean = np.array(mean, np.uint8)
        self.elastic = elastic
        self.short_side = short_side
        self.padding: Padding = padding
        self.padding_label = IGNORE if padding_label is None else padding_label
        wanted = color or blur
        self.look = make_look(color, blur, blur_sigma, blur_kernel) if wanted else None
        self.extra = Extra(extra, mean) if extra else None
        self.blank = blank

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Return the view of `sample` that `seed` stands for.

        Errors: DataError where image and annotation differ in size.
        """
        rng = np.random.default_rng(seed)
        view = self.draw(source_size(sample), rng)
        image = view.show(sample.image, smooth=True)
        if self.look:
            # One generator for everything. set_random_seed would start every transform on the
            # *same* stream, and then what is drawn for one would follow from what was drawn for
            # another.
            self.look.set_random_state(rng, random.Random(seed))
            image = np.ascontiguousarray(self.look(image=image)["image"])
        view.paint(image, self.mean)  # last, so that jitter and blur leave the padding as the mean
        shown = show_sample(sample, view, image, self.padding_label)
        if self.blank:
            return replace(shown, inside=view.inside)
        return self.extra(shown, rng, seed) if self.extra else shown

    def draw(self, source: tuple[int, int], rng: np.random.Generator) -> View:
        """Draw a view of `source` (height, width).

        There are always six draws, so that one setting does not shift another's. The draws of a
        bent view come after them.
        """
        scale, turned, angle, top, left, mirrored = rng.random(6)
        degrees = self.rotate * (2 * angle - 1) if turned < self.rotate_share else 0.0
        factor = self.pick_scale(scale, source)
        view = draw_view(source, self.crop, factor, (top, left), degrees)
        bend = draw_bend(self.crop, self.elastic, rng) if self.elastic else None
        view = replace(view, mirrored=bool(mirrored < self.flip), bend=bend)
        return padded(view, self.padding)

    def pick_scale(self, u: float, source: tuple[int, int]) -> float:
        """Return the scale of `source` (height, width) for a uniform draw `u` from [0, 1)."""
        if self.short_side is not None:
            least, most = self.short_side
            return (least + int(u * (most - least + 1))) / min(source)
        low, high = self.scale
        if not self.scale_step:
            return low + u * (high - low)
        # 1e-6: so that (2 - 0.5) / 0.25 is six steps also where division gives 5.999...
        steps = int((high - low) / self.scale_step + 1e-6) + 1
        return low + self.scale_step * int(u * steps)


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

    `steps` are [{CLAHE: {p: 0.2}}, {Affine: {rotate: [-10, 10]}}, ...]; arguments are numbers,
    text, true, false, null and lists of them. Image, label mask and instances stay in step: new
    pixels are `mean`, and of no label, and an instance that is left without a pixel is dropped.
    Errors: UserError for a transform or an argument that there is not, and for one that changes the
    size or the form of an image, or makes labels that there were not.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], mean: tuple[int, int, int]) -> None:
        self.steps = [_named(step) for step in steps]
        self.mean = mean
        self._composed: dict[int, Any] = {}  # label of new pixels -> albumentations.Compose
        for step in self.steps:
            _try(step, _albumentations(step, IGNORE, mean, always=True))

    def __call__(self, sample: Sample, rng: np.random.Generator, seed: int) -> Sample:
        """Return the sample with its image, and its labels in step."""
        instances = sample.instances
        void = IGNORE if instances is None else 0
        if void not in self._composed:
            made = [_albumentations(step, void, self.mean) for step in self.steps]
            self._composed[void] = _compose(made)
        compose = self._composed[void]
        compose.set_random_state(rng, random.Random(seed))
        if instances is None:
            done = compose(image=sample.image, mask=sample.mask)
            mask = np.ascontiguousarray(done["mask"])
            return replace(sample, image=np.ascontiguousarray(done["image"]), mask=mask)
        masks = list(instances.masks.numpy().view(np.uint8))
        done = compose(image=sample.image, **({"masks": masks} if masks else {}))
        image = np.ascontiguousarray(done["image"])
        shown = [np.ascontiguousarray(mask) for mask in done.get("masks", [])]
        size = (image.shape[0], image.shape[1])
        return replace(sample, image=image, instances=instances_in(shown, instances, size))


class Step(NamedTuple):
    """A transform by its name, and its arguments."""

    name: str
    arguments: dict[str, Any]


PLAIN = (bool, int, float, str, type(None))
FUNCTIONS = ("Lambda",)  # take a function, which no text can name
# Sides of the image that a transform is tried on, which are no multiples of anything.
TRIED = (67, 81)
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
    return Step(str(name), {str(key): value for key, value in arguments.items()})


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
        arguments = {"fill": tuple(mean), "fill_mask": void, **arguments}
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


def _try(step: Step, made: Any) -> None:
    """Let a transform show on a few samples that it keeps size, form and labels.

    Errors: UserError.
    """
    compose = _compose([made])
    for seed in range(TRIES):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*TRIED, 3), np.uint8)
        mask = rng.choice(np.array([1, 3, IGNORE], np.uint8), TRIED)
        compose.set_random_state(rng, random.Random(seed))
        try:
            done = compose(image=image, mask=mask)
        except Exception as error:
            raise UserError(
                f"augment.extra: {step.name} cannot stand here: {words_of(error)}"
            ) from None
        shown = done["image"]
        form = (tuple(shown.shape), str(shown.dtype))
        if form != ((*TRIED, 3), "uint8"):
            raise UserError(
                f"augment.extra: {step.name} makes an image of another size or form; "
                "dataset.crop and augment.scale say how large it is"
            )
        labels = set(np.unique(done["mask"]).tolist())
        if done["mask"].shape != TRIED or not labels <= {1, 3, IGNORE}:
            raise UserError(
                f"augment.extra: {step.name} makes labels that there were not "
                f"({min(labels - {1, 3, IGNORE}, default='another size')})"
            )


def check_settings(
    crop: tuple[int, int], scale: tuple[float, float], scale_step: float, shares: dict[str, float]
) -> None:
    """Refuse values that no view can be made from. Errors: UserError."""
    if len(crop) != 2 or min(crop) < 1:
        raise UserError(
            f"augment.crop={list(crop)}: give [height, width] in pixels, both at least 1"
        )
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"augment.scale={list(scale)}: give [lowest, highest], above 0 and in this order"
        )
    if scale_step < 0:
        raise UserError(
            f"augment.scale_step={scale_step}: give 0 for any scale in the range, "
            "or the step between scales"
        )
    check_shares(shares)


def check_blur(sigma: tuple[float, float], kernel: int) -> None:
    """Refuse a blur that cannot be made. Errors: UserError."""
    if len(sigma) != 2 or not 0 <= sigma[0] <= sigma[1] or not sigma[1]:
        raise UserError(
            f"augment.blur_sigma={list(sigma)}: give [lowest, highest] in pixels, from 0 on and in "
            "this order"
        )
    if kernel and (kernel < 3 or kernel % 2 == 0):
        raise UserError(
            f"augment.blur_kernel={kernel}: give an odd number of pixels from 3 on, or 0 for what "
            "the deviation needs"
        )


def check_shares(shares: dict[str, float]) -> None:
    """Refuse what is no share. Errors: UserError."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"augment.{name}={value}: give a value from 0 to 1")
