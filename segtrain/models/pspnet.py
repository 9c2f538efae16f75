"""PSPNet, the pyramid scene parsing network (Zhao et al., CVPR 2017, arXiv:1612.01105)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.resnet import ResNet
from segtrain.errors import UserError
from segtrain.layers.blocks import (
    Dropped,
    HeadInit,
    check_stem,
    classifier,
    conv_norm_relu,
    fcn_head,
    head_dropout,
    initialise,
    initialise_head,
    model_input,
    need_images,
    resize,
    set_momentum,
)
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

STRIDE = 8  # input pixels per feature
WIDTH = 512
BINS = [1, 2, 3, 6]  # figure 3


class PSPNet(SegmentationModel):
    """Tell each pixel its scene by means of the deepest feature over regions of four sizes.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training with
    `aux`, "aux" of the same shape. The head: pyramid pooling, 3x3 to 512, dropout 0.1, 1x1.

    stem       "deep": three 3x3, as in the authors' ResNets, for `weights` of a file; "deep_msra":
               the same with a stage's stride in the first 1x1, as their ResNet-50 for Caffe;
               "deep32": OpenMMLab's, half as wide as "deep"; "torchvision": 7x7.
    bins       regions along each side, one pooling branch per entry; [] or None: no pyramid, the
               ablation's baseline (table 1).
    pool       what is taken over a region.
    reduce     a 1x1 per branch divides the channels by the number of branches ("DR" in table 1);
               without it the pooled values join as they are, which is our reading.
    aux        an FCN head on the third stage (section 3.3), weighed 0.4 by loss=pixel_aux.
    momentum   PyTorch's, of every batch norm: 0.05 is the authors' decay of 0.95.
    pattern    "uniform": every block of a stage is dilated alike, as the authors'. "delayed": from
               the second on, as in mmsegmentation (see `ResNet`).
    align_corners  of every resize; mmsegmentation aligns none.
    dropout    of 0.1 before both classifiers. "element": of single numbers, as in Caffe; "channel":
               of whole channels, as in semseg.
    head_init  the first weights of the new layers. "small": by He's rule, but the classifiers near
               0; "he": all by He's rule, as in the Caffe release; "torch": torch's, as in semseg.

    Third and fourth stage lose their stride and are dilated by 2 and 4. Input sizes
    8k + 1 align corners; 473 and 713 give maps of 60 and 90, which every bin divides. A batch norm
    on the 1x1 bin has one value per image, so with norm="batch" a process needs `min_train_batch` =
    2 images to train.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
        ] = "resnet101",
        stem: Literal["deep", "deep32", "deep_msra", "torchvision"] = "deep",
        bins: list[int] | None = BINS,
        pool: Literal["average", "max"] = "average",
        reduce: bool = True,
        aux: bool = True,
        norm: Literal["batch", "group", "frozen"] = "batch",
        weights: Literal["imagenet"] | Path | None = None,
        momentum: float = 0.1,
        input: Input = None,
        pattern: Literal["uniform", "delayed"] = "uniform",
        align_corners: bool = True,
        dropout: Dropped = "element",
        head_init: HeadInit = "small",
    ) -> None:
        super().__init__()
        check_stem(stem, weights)
        self.backbone = ResNet(backbone, STRIDE, None, norm, weights, style=stem, pattern=pattern)
        self.preprocess = chosen(input, self.backbone.preprocess)
        self.align_corners = align_corners
        *_, middle, deep = self.backbone.channels
        bins = list(bins or [])
        self.pyramid = PyramidPooling(deep, bins, pool, reduce, norm, align_corners)
        self.fuse = nn.Sequential(
            conv_norm_relu(self.pyramid.channels, WIDTH, 3, norm=norm), head_dropout(dropout)
        )
        self.classifier = classifier(WIDTH, num_classes)
        self.aux = fcn_head(middle, num_classes, norm, dropout) if aux else None
        initialise(self.pyramid, self.fuse)
        initialise_head(head_init, self.pyramid, self.fuse, self.classifier, self.aux)
        set_momentum(self, momentum)

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch."""
        return self.pyramid.min_train_batch

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training."""
        return ("logits",) if self.aux is None else ("logits", "aux")

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        heads = ["classifier", *([] if self.aux is None else ["aux.2"])]
        return dict.fromkeys(heads, ClassRows())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) and, in training, what `outputs` names."""
        x = model_input(batch, self.preprocess)
        *_, middle, deep = self.backbone(x)
        logits = self.classifier(self.fuse(self.pyramid(deep)))
        output = {"logits": resize(logits, x, self.align_corners)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, self.align_corners)
        return output


class PyramidPooling(nn.Module):
    """Join the input with its pooled values, spread again, per entry of `bins`.

    `(B, inputs, H, W) -> (B, channels, H, W)`.
    A branch pools to bins x bins, reduces with 1x1, norm, ReLU to inputs / len(bins) where `reduce`
    says so, and is interpolated.
    """

    def __init__(
        self,
        inputs: int,
        bins: list[int],
        pool: Literal["average", "max"],
        reduce: bool,
        norm: str = "batch",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if any(n < 1 for n in bins) or len(bins) > inputs:
            raise UserError(
                f"bins={bins}: regions along each side, 1 or more, such as {BINS}, or [] for no "
                f"pyramid"
            )
        if pool not in ("average", "max"):
            raise UserError(f"pool={pool} is unknown. Known: average, max")
        self.bins = bins
        self.align_corners = align_corners
        self.pool = pool
        width = inputs // len(bins) if bins and reduce else inputs
        convs = [
            conv_norm_relu(inputs, width, norm=norm) if reduce else nn.Identity() for _ in bins
        ]
        self.reduce = nn.ModuleList(convs)
        self.channels = inputs + len(bins) * width

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch.

        SyncBatchNorm sees the other processes' images.
        """
        single = [conv for bins, conv in zip(self.bins, self.reduce, strict=True) if bins == 1]
        return (
            2
            if any(isinstance(m, nn.BatchNorm2d) for conv in single for m in conv.modules())
            else 1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the pooled values side by side."""
        if self.training:
            need_images(x, self.min_train_batch, "the 1x1 bin of the pyramid")
        parts = [x]
        for bins, reduce in zip(self.bins, self.reduce, strict=True):
            pooled = pool_into(pool_into(x, 2, bins, self.pool), 3, bins, self.pool)
            parts.append(resize(reduce(pooled), x, self.align_corners))
        return torch.cat(parts, dim=1)


def pool_into(x: Tensor, dim: int, bins: int, pool: Literal["average", "max"]) -> Tensor:
    """Return the mean or maximum of `x` over `bins` windows along `dim`.

    Window i is [floor(i n / bins), ceil((i + 1) n / bins)). Where bins divides n that is pooling
    with kernel = stride = n / bins, as in the authors' networks; elsewhere windows overlap, as in
    torch's adaptive pooling, whose backward pass is not deterministic on CUDA: this one is.
    """
    n = x.shape[dim]
    if n % bins == 0:
        windows = x.unflatten(dim, (bins, n // bins))
        return windows.mean(dim + 1) if pool == "average" else windows.amax(dim + 1)
    index = torch.arange(bins, device=x.device).unsqueeze(1)
    first = index * n // bins
    end = ((index + 1) * n + bins - 1) // bins
    widest = n // bins + 2
    position = first + torch.arange(widest, device=x.device)
    within = torch.minimum(position, end - 1).flatten()
    windows = x.index_select(dim, within).unflatten(dim, (bins, widest))
    if pool == "max":
        # Narrower windows hold their last value several times, which changes no maximum.
        return windows.amax(dim + 1)
    trailing = [1] * (x.ndim - dim - 1)
    inside = (position < end).view(bins, -1, *trailing)
    return (windows * inside).sum(dim + 1) / (end - first).view(bins, *trailing)
