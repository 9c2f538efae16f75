"""FCN as its authors released it, for Caffe (github.com/shelhamer/fcn.berkeleyvision.org).

voc-fcn32s, -fcn16s, -fcn8s, -fcn8s-atonce and -fcn-alexnet hold the 21 classes of VOC,
pascalcontext-fcn32s, -fcn16s and -fcn8s the 60 of PASCAL-Context. Their deconvolutions are fixed
and bilinear; of a network whose users let them learn, they are weights.
"""

from __future__ import annotations

from torch import Tensor

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.family import Family, Published, Unfit, Values, width

# The release's layer -> ours. Those inside the network stand between two strides.
INNER = {"upscore2": "pool4", "upscore_pool4": "pool3"}
LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}
AT_ONCE = {"scale_pool4": 1e-2, "scale_pool3": 1e-4}
NAMES = [
    *caffe.vgg_names(),
    (r"fc6\.", "head.fc.0."),
    (r"fc7\.", "head.fc.3."),
    (r"score_fr\.", "head.score_fr."),
    (r"score_(pool[34])\.", r"head.score.\1."),
    *((rf"{layer}\.", f"head.up.{place}.") for layer, place in INNER.items()),
    *((rf"{layer}\.", "head.upscore.") for layer in LAST.values()),
]
# Caffe's AlexNet: its convolutions among our layers, with ReLU, pools and normalisation between.
ALEXNET = [(rf"conv{n}\.", f"backbone.layers.{i}.") for n, i in enumerate((0, 4, 8, 10, 12), 1)]
TABLES = {21: "voc", 60: "context"}


def _fcn(values: Values) -> Published:
    if "score_fr_sem/0" in values:
        raise Unfit("it has two heads, for kinds and for geometry (SIFT Flow), ours has one")
    state = caffe.torch_layers(values)
    first = "conv1_1.weight" if "conv1_1.weight" in state else "conv1.weight"
    if width(state, first, 1) != 3:
        raise Unfit(f"its first convolution reads {width(state, first, 1)} channels, ours RGB")
    stride = 8 if "score_pool3.weight" in state else 16 if "score_pool4.weight" in state else 32
    classes = width(state, "score_fr.weight")
    learned, left_out = _deconvolutions(state, stride)
    alexnet = first == "conv1.weight"
    return Published(
        model="fcn",
        arguments={
            "backbone": "alexnet" if alexnet else caffe.vgg(state),
            "head": "fcn",
            "stride": stride,
            "norm": "none",
            "pad": 100,
            "learned_upsampling": learned,
            "at_once": _at_once(state),
            "width": width(state, "fc6.weight"),
        },
        input="fcn",
        values=state,
        names=[*ALEXNET, *NAMES] if alexnet else NAMES,
        left_out={
            **left_out,
            r"scale_pool[34]\.": "a factor on a skip, which model.at_once=true has",
        },
        num_classes=classes,
        classes=TABLES.get(classes),
        measured=("inference=whole",),
    )


def _deconvolutions(state: dict[str, Tensor], stride: int) -> tuple[str, dict[str, str]]:
    """Return which deconvolutions learned, as the model calls it, and which are left out.

    Those that learned become one kernel per class. Errors: Unfit.
    """
    learned = set()
    for layer in [*INNER, LAST[stride]]:
        key = f"{layer}.weight"
        if key not in state:
            continue
        kernels = caffe.bilinear_per_channel(state[key])
        if kernels is None:
            raise Unfit(f"its deconvolution {layer} mixes the classes, ours keep them apart")
        state[key] = kernels
        if not caffe.is_bilinear(kernels):
            learned.add(layer)
    which = "all" if LAST[stride] in learned else "intermediate" if learned else "none"
    fixed = {"none": [*INNER, LAST[stride]], "intermediate": [LAST[stride]], "all": []}[which]
    return which, {rf"{layer}\.": "bilinear and fixed, as ours is" for layer in fixed}


def _at_once(state: dict[str, Tensor]) -> bool:
    """Return whether the skips are scaled as the release trains FCN-8s in one go."""
    for layer, factor in AT_ONCE.items():
        scale = state.get(f"{layer}.weight")
        if scale is not None and not bool(((scale / factor - 1).abs() < 1e-3).all()):
            raise Unfit(f"its layer {layer} scales by another factor than {factor:g}")
    return "scale_pool4.weight" in state


FCN = Family(
    name="the authors' FCN (Caffe)",
    known_by=(r"score_fr(_sem)?/0", r"fc6/0", r"conv1(_1)?/0"),
    read=_fcn,
)
