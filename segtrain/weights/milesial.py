"""U-Net of milesial/Pytorch-UNet: `unet_carvana_scale0.5_epoch2.pth`, and files of its training.

Padded convolutions with batch norm, transposed ones on the way up. The decoder reads the skip
before what comes from below, ours after it. On sides that 16 divides both are the same network; of
others it cuts an odd pixel off where ours rounds up.
"""

from __future__ import annotations

import torch

from segtrain.weights.family import Family, Published, Unfit, Values, width

STEPS = (1, 2, 3, 4)
SCALE = "images are to be given at the scale of the training, which a published file's name tells"


def _unet(values: Values) -> Published:
    if "up1.up.weight" not in values:
        raise Unfit("it interpolates on the way up (bilinear=True), ours learns deconvolutions")
    if "inc.double_conv.0.bias" in values:
        raise Unfit("its convolutions have biases before batch norm, ours do not")
    turned = dict(values)
    for step in STEPS:
        key = f"up{step}.conv.double_conv.0.weight"
        joined = values[key]
        skip = joined.shape[1] // 2  # channels of the skip, which stand first
        turned[key] = torch.cat([joined[:, skip:], joined[:, :skip]], dim=1)
    channels = width(values, "inc.double_conv.0.weight", 1)
    if channels not in (1, 3):
        raise Unfit(f"it reads {channels} channels, ours 1 or 3")
    return Published(
        model="unet",
        arguments={
            "in_channels": channels,
            "padding": "same",
            "norm": "batch",
            "width": width(values, "inc.double_conv.0.weight"),
            "dropout": 0.0,
        },
        input="grey" if channels == 1 else "unit",
        values=turned,
        names=[
            (r"inc\.double_conv\.", "backbone.0."),
            *((rf"down{n}\.maxpool_conv\.1\.double_conv\.", f"backbone.{n}.") for n in STEPS),
            *((rf"up{n}\.up\.", f"up.{n - 1}.") for n in STEPS),
            *((rf"up{n}\.conv\.double_conv\.", f"decoder.{n - 1}.") for n in STEPS),
            (r"outc\.conv\.", "classifier."),
        ],
        num_classes=width(values, "outc.conv.weight"),
        measured=("inference=whole",),
        notes=(SCALE,),
    )


UNET = Family(
    name="milesial's U-Net",
    known_by=(
        r"inc\.double_conv\.0\.weight",
        r"down4\.maxpool_conv\.1\.double_conv\.0\.weight",
        r"outc\.conv\.weight",
    ),
    read=_unet,
)
