"""What a checkpoint costs: its FLOPs beside a sum by hand, and its speed by a clock that we set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instance_zoo
import numpy as np
import pytest
import torch
import zoo
from commandline import SMALL_RUN, trained, typed
from torch import nn

from segtrain.backbones.resnet import ResNet
from segtrain.commands import speed as speed_module
from segtrain.commands.evaluate import cost_of
from segtrain.commands.speed import speed_of, table
from segtrain.inference.instances import InstanceSegmentation
from segtrain.inference.mask_proposals import BoxProposals, MaskProposals
from segtrain.inference.semantic import Semantic
from segtrain.optim.precision import Precision

SHAPES = ("dataset.train=2", "dataset.val=2", "dataset.size=[32,48]", "train.verify=false")


class Loaded:
    """A network with its inference, as `segtrain.load` gives it."""

    def __init__(self, network: nn.Module, predictor: Any = None) -> None:
        self.network = network.eval()
        self.predictor = predictor
        self.precision = Precision("fp32")
        self.device = torch.device("cpu")
        self.run = SimpleNamespace(train=SimpleNamespace(precision="fp32"))

    def __call__(self, image: np.ndarray, sample_id: str) -> object:
        with torch.inference_mode():
            tensor = torch.from_numpy(image).permute(2, 0, 1)
            if self.predictor is not None:
                return self.predictor(tensor, sample_id)
            return self.network(tensor[None].float())


class Images:
    """One image of noise."""

    ids = ("first",)

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self.image = rng.integers(0, 255, (height, width, 3), np.uint8)

    def __getitem__(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(image=self.image)


SIDES = {"shorter": 48, "longest": 96}
# A predictor of each kind around a small network.
PREDICTORS: dict[str, Callable[[], Any]] = {
    "deeplabv3": lambda: Semantic(zoo.bare("deeplabv3")),
    "pspnet": lambda: Semantic(zoo.bare("pspnet"), mode="slide", window=[33, 33], flip=True),
    "mask_rcnn": lambda: InstanceSegmentation(instance_zoo.build("mask_rcnn"), **SIDES),
    "panet": lambda: InstanceSegmentation(instance_zoo.build("panet"), **SIDES),
    "fpn": lambda: MaskProposals(instance_zoo.build("fpn"), count=10, **SIDES),
    "box_rpn": lambda: BoxProposals(instance_zoo.build("box_rpn"), count=10, **SIDES),
}


def by_hand() -> int:
    """Multiply-adds of ResNet-50 on 224 x 224 pixels without its classifier, layer by layer."""
    count = 112**2 * 7 * 7 * 3 * 64
    inputs = 64
    side = 56
    for blocks, inner, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            before = side
            side = side // stride if block == 0 else side
            count += before**2 * inputs * inner  # 1x1
            count += side**2 * 9 * inner * inner  # 3x3, which strides
            count += side**2 * inner * 4 * inner  # 1x1
            count += side**2 * inputs * 4 * inner if block == 0 else 0  # the shortcut
            inputs = 4 * inner
    return count


def test_the_sum_by_hand_is_what_torchvision_publishes_for_resnet_50() -> None:
    weights = pytest.importorskip("torchvision.models").ResNet50_Weights.IMAGENET1K_V1
    classifier = 2048 * 1000
    assert by_hand() + classifier == 4_089_184_256
    assert weights.meta["_ops"] == 4.089  # it calls 10^9 multiply-adds GFLOPS


@pytest.mark.slow  # torch imports its compiler to count
def test_the_flops_of_resnet_50_are_two_for_each_multiply_add_of_the_sum_by_hand() -> None:
    cost = cost_of(Loaded(ResNet("resnet50")), Images(224, 224))  # type: ignore[arg-type]
    assert cost["flops"] == 2 * by_hand() == 2 * 4_087_136_256
    assert cost["parameters"] == 23_508_032


@pytest.mark.slow
@pytest.mark.parametrize("name", PREDICTORS)
def test_flops_are_counted_of_every_kind_of_system(name: str) -> None:
    """Those of its convolutions, counted again by hooks, and of what else it multiplies."""
    predictor = PREDICTORS[name]()
    loaded = Loaded(predictor.model, predictor)
    counted = [0]

    def add(layer: nn.Module, given: Any, output: torch.Tensor) -> None:
        each = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_features
        counted[0] += 2 * output.numel() * each

    for layer in predictor.model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    flops = cost_of(loaded, Images(40, 60))["flops"]  # type: ignore[arg-type]
    assert counted[0] > 0
    # Transposed convolutions and products of matrices are not counted by the hooks.
    assert counted[0] <= flops < 1.1 * counted[0]


@pytest.mark.parametrize("name", ["pspnet", "mask_rcnn"])
def test_the_speed_of_prediction_and_network_is_measured_at_the_size_that_is_shown(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "WARM_UP", 1)
    predictor = PREDICTORS[name]()
    given: list[int] = []
    whole = predictor.network_output
    predictor.network_output = lambda batch: given.append(len(batch.ids)) or whole(batch)
    loaded = Loaded(predictor.model, predictor)
    speed = speed_of(loaded, Images(40, 60), 3, 2, False)  # type: ignore[arg-type]
    rows = [(row["what"], row["batch"]) for row in speed["measured"]]
    assert rows == [("prediction", 1), ("network", 1), ("network", 3)]
    assert given == [1, 1, 1, 3, 3, 3]
    shown = {"pspnet": (33, 33), "mask_rcnn": (48, 72)}[name]
    assert (speed["network_height"], speed["network_width"]) == shown
    assert (speed["height"], speed["width"], speed["left_out"]) == (40, 60, [])


def test_percentiles_and_rates_are_those_of_the_times_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 passes of 1 to 100 ms, after three of an hour."""
    now = [0.0]
    lengths = iter([3600.0] * 3 + [i / 1000 for i in range(100, 0, -1)])

    def work() -> None:
        now[0] += next(lengths)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found = speed_module._measured(work, 8, 100, lambda done: None, on_gpu=False)
    assert found["p50_ms"] == pytest.approx(50.5)
    assert found["p95_ms"] == pytest.approx(95.05)
    assert found["images_per_second"] == pytest.approx(8 * 100 / 5.05)
    assert found["peak_memory_mib"] > 50


def test_a_batch_that_does_not_fit_is_said_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = PREDICTORS["deeplabv3"]()
    whole = predictor.network_output

    def full(batch: Any) -> object:
        if len(batch.ids) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(batch)

    predictor.network_output = full
    speed = speed_of(Loaded(predictor.model, predictor), Images(32, 32), 64, 2, False)  # type: ignore[arg-type]
    assert [row["batch"] for row in speed["measured"]] == [1, 1]
    assert table(speed).splitlines()[-1] == "network, batch 64: does not fit in memory"


@pytest.mark.slow
def test_segeval_writes_and_prints_speed_and_cost(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *SHAPES, *SMALL_RUN, "train.steps=1", "log.images=0")
    words = ("eval.speed=true", "eval.speed_batch=2", "eval.speed_repetitions=3", "eval.cost=true")
    ended = typed("segeval", f"checkpoint={run}", *words)
    assert (ended.code, ended.err) == (0, "")
    (folder,) = (run / "eval").iterdir()
    speed = json.loads((folder / "speed.json").read_text())
    assert ended.out.endswith(table(speed) + "\n")
    head, names, *rows = table(speed).splitlines()
    assert head.startswith(f"speed on cpu, {torch.get_num_threads()} thread")
    assert head.endswith("; 3 times after 3 to warm up")
    assert names.split() == ["batch", "p50", "ms", "p95", "ms", "images/s", "peak", "MiB"]
    assert [row.split()[:2] for row in rows] == [
        ["prediction", "1"],
        ["network", "1"],
        ["network", "2"],
    ]
    assert json.loads((folder / "cost.json").read_text())["flops"] > 0
    again = typed("segeval", f"checkpoint={run}")
    assert again.code == 0
    assert not (folder / "speed.json").exists(), "it would be taken for that of this measurement"
