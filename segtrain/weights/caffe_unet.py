"""U-Net as its authors released it, for Caffe (phseg_v5 and others of u-net-release-2015-10-02).

A level goes down from d0a to d4c and up from u3a to u0d. The layers' names and sizes were seen in
code that reads these files; that they read grey in [0, 1] is what U-Net's own training here does,
and was not confirmed.
"""

from __future__ import annotations

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.family import Family, Published, Unfit, Values, width

LEVELS = range(4)
CONVOLUTIONS = {"a-b": 0, "b-c": 2}  # of a level on the way down, and our layers
BACK = {"b-c": 0, "c-d": 2}
NAMES = [
    *(
        (rf"conv_d{level}{part}\.", f"backbone.{level}.{n}.")
        for level in range(5)
        for part, n in CONVOLUTIONS.items()
    ),
    *((rf"upconv_[du]{level + 1}[cd]_u{level}a\.", f"up.{3 - level}.0.") for level in LEVELS),
    *(
        (rf"conv_u{level}{part}\.", f"decoder.{3 - level}.{n}.")
        for level in LEVELS
        for part, n in BACK.items()
    ),
    (r"conv_u0d-score[\w-]*\.", "classifier."),
]


def _unet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    last = next((key for key in state if key.startswith("conv_u0d-score")), "")
    channels = width(state, "conv_d0a-b.weight", 1)
    first = width(state, "conv_d0a-b.weight")
    if (kept := width(state, "upconv_u1d_u0a.weight", 1)) != 2 * first:
        raise Unfit(f"its last up-convolution gives {kept} channels, the released one {2 * first}")
    return Published(
        model="unet",
        arguments={
            "in_channels": channels,
            "padding": "valid",
            "norm": "none",
            "width": first,
            "released": True,
        },
        input="grey" if channels == 1 else "unit",
        values=state,
        names=NAMES,
        num_classes=width(state, last),
        measured=("inference=tile",),
    )


UNET = Family(
    name="the authors' U-Net (Caffe)",
    known_by=(r"conv_d0a-b/0", r"upconv_d4c_u3a/0"),
    read=_unet,
    confirmed=False,
)
