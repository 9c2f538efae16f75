"""Recognise whose a file of weights is, and read it as a network of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from segtrain.errors import UserError
from segtrain.weights import (
    caffe_deconvnet,
    caffe_deeplab,
    caffe_fcn,
    caffe_imagenet,
    caffe_parsenet,
    caffe_pspnet,
    caffe_unet,
    detectron,
    detectron2,
    detectron_imagenet,
    kazuto,
    milesial,
    mmdetection,
    mmsegmentation,
    mobilenets,
    panet_release,
    pytorch_encoding,
    semseg,
    tensorflow_deeplab,
    tensorflow_imagenet,
    torchvision_classifiers,
    torchvision_detection,
    torchvision_segmentation,
    vainf,
    wkentaro,
)
from segtrain.weights.content import Weights
from segtrain.weights.family import Family, Published, Unfit, left_out_of, translate
from segtrain.weights.formats import read_weights

# The first that knows a file's keys has it: a family whose keys are among another's stands behind.
FAMILIES: Sequence[Family] = (
    torchvision_segmentation.DEEPLABV3,
    torchvision_segmentation.FCN,
    mobilenets.DEEPLABV3,
    semseg.PSPNET,
    pytorch_encoding.ENCNET,
    kazuto.DEEPLAB,
    kazuto.DEEPLABV3,
    kazuto.DEEPLABV3PLUS,
    kazuto.BACKBONE,
    wkentaro.FCN,
    vainf.DEEPLABV3,
    vainf.DEEPLABV3PLUS,
    milesial.UNET,
    torchvision_detection.MASK_RCNN,
    detectron2.DETECTRON2,
    detectron.DETECTRON,
    detectron_imagenet.BACKBONE,
    mmdetection.MMDETECTION,
    panet_release.PANET,
    mmsegmentation.MMSEGMENTATION,
    torchvision_classifiers.RESNET,
    torchvision_classifiers.VGG,
    torchvision_classifiers.ALEXNET,
    torchvision_classifiers.GOOGLENET,
    torchvision_classifiers.MOBILENET,
    caffe_fcn.FCN,
    caffe_pspnet.PSPNET,
    caffe_deconvnet.DECONVNET,
    caffe_parsenet.PARSENET,
    caffe_deeplab.RESNET,
    caffe_deeplab.VGG,
    caffe_unet.UNET,
    # Networks whose layers stand in others too: behind all of them.
    caffe_imagenet.VGG,
    caffe_imagenet.RESNET,
    caffe_imagenet.ALEXNET,
    caffe_imagenet.GOOGLENET,
    tensorflow_deeplab.DEEPLAB,
    tensorflow_imagenet.XCEPTION,
    tensorflow_imagenet.MOBILENET,
    tensorflow_imagenet.BETA,
)
MAX_REASON = 80  # characters of what a library says


@dataclass(frozen=True)
class Recognised:
    """A file whose family is known."""

    family: Family
    published: Published
    state: dict[str, Tensor]  # by our names
    left_out: dict[str, str]  # what the file holds beside them -> why it is left out
    file: Weights


def recognise(path: str | Path, file: Weights) -> Recognised | None:
    """Return what the weights of `path` are with us; None where no family knows them.

    Errors: UserError, in one line, for a network of a known family that is none of ours.
    """
    keys = list(file.values)
    family = next((family for family in FAMILIES if family.knows(keys)), None)
    if family is None:
        return None
    try:
        published = family.read(file.values)
        state = translate(published)
    except (Unfit, UserError) as error:
        raise UserError(f"{path}: weights of {family.name}, but {error}") from None
    # A file with some keys of a family and others missing, or of other shapes.
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(
            f"{path}: keys as weights of {family.name} have them, but not its layout "
            f"({type(error).__name__}: {reason})"
        ) from None
    left_out = {**file.dropped, **left_out_of(published)}
    return Recognised(family, published, state, left_out, file)


def read_published(path: str | Path) -> Recognised:
    """Read a file of a known family. Errors: UserError, also for one that nobody knows."""
    file = read_weights(path)
    recognised = recognise(path, file)
    if recognised is None:
        shown = ", ".join(list(file.values)[:3])
        raise UserError(
            f"{path}: its {len(file.values)} tensors are of no family that is known (first keys: "
            f"{shown}); known are {', '.join(family.name for family in FAMILIES)}"
        )
    return recognised
