"""Batch norms that were folded into convolutions get statistics, and compute what they computed."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from commandline import typed
from torch import Tensor, nn

import segtrain
from segtrain.engine import batch_norm
from segtrain.layers.norm import FrozenBatchNorm
from segtrain.runtime.distributed import World

DATA = os.environ.get("SEGTRAIN_DATA")


class Folded(nn.Module):
    """Two convolutions whose biases are their norms', a new norm, one that evaluation leaves out"""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3))
        self.new = nn.BatchNorm2d(4)
        self.aux = nn.BatchNorm2d(4)
        self.frozen = FrozenBatchNorm(4)
        for norm in (self.first[1], self.second[1], self.aux, self.frozen):
            nn.init.normal_(norm.bias)
        nn.init.constant_(self.first[1].weight, (1 + 1e-5) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        if self.training:
            self.aux(x)
        return self.frozen(self.new(x))


@pytest.fixture
def network() -> Folded:
    torch.manual_seed(0)
    return Folded()


def images() -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 9, 9 + n, generator=g) * (n + 1) + n for n in range(3)]


def test_outputs_stay_and_statistics_are_those_of_what_a_norm_reads(network: Folded) -> None:
    before = copy.deepcopy(network).eval()
    assert batch_norm.folded(network) == [network.first[1], network.second[1], network.aux]
    assert batch_norm.unfold(network.train(), images(), World()) == 2
    assert batch_norm.folded(network) == [network.aux]  # evaluation never calls it
    assert network.training
    assert network.first[1].training
    with torch.no_grad():
        read = torch.cat([before.first[0](x).transpose(0, 1).flatten(1) for x in images()], 1)
        torch.testing.assert_close(network.first[1].running_mean, read.mean(1))
        torch.testing.assert_close(network.first[1].running_var, read.var(1, unbiased=False))
        network.eval()
        for x in images():
            torch.testing.assert_close(network(x), before(x), rtol=1e-5, atol=1e-5)
    untouched = ("new.weight", "new.bias", "new.running_var", "aux.weight", "frozen.bias")
    for name in untouched:
        assert torch.equal(network.state_dict()[name], before.state_dict()[name])


def test_in_training_the_network_stays_what_it_was_only_with_statistics(network: Folded) -> None:
    network.new = nn.Identity()  # a new norm changes the output, as it should
    x = torch.randn(8, 3, 33, 33) * 3
    with torch.no_grad():
        expected = network.eval()(x)
        as_given = copy.deepcopy(network).train()(x)
        batch_norm.unfold(network, [x], World())
        unfolded = network.train()(x)
    scale = expected.std()
    assert (as_given - expected).abs().max() > scale
    assert (unfolded - expected).abs().max() < 1e-4 * scale


def test_statistics_are_those_of_all_ranks(network: Folded) -> None:
    here, there = images()[:2]
    copied = copy.deepcopy(network)
    asked: list[Tensor] = []

    class Other(World):
        """A rank that saw another image: it asks for the same sums in the same order."""

        def sum(self, tensor: Tensor) -> Tensor:
            asked.append(tensor.clone())
            return tensor

    batch_norm.unfold(copy.deepcopy(network), [there], Other())
    theirs = iter(asked)

    class Both(World):
        def sum(self, tensor: Tensor) -> Tensor:
            return tensor.add_(next(theirs))

    batch_norm.unfold(network, [here], Both())
    batch_norm.unfold(copied, [here, there], World())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, copied.state_dict()[name])


def test_no_images_change_nothing(network: Folded) -> None:
    before = copy.deepcopy(network.state_dict())
    assert batch_norm.unfold(network, [], World()) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_run_warns_of_folded_norms_or_gives_them_statistics(tmp_path: Path) -> None:
    weights = tmp_path / "folded.pth"
    small = [
        "model=deeplabv3plus_r18",
        "dataset=shapes",
        "dataset.size=[48,48]",
        "dataset.crop=[48,48]",
        "dataset.train=4",
        "dataset.val=1",
        "train.batch_size=2",
        "train.steps=1",
        "train.threads=1",
    ]
    torch.manual_seed(0)
    network = segtrain.create_model("deeplabv3plus_r18", num_classes=3)
    for layer in network.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.1)
    state = {f"backbone.{key}": value for key, value in network.backbone.state_dict().items()}
    torch.save(state, weights)
    start = [*small, f"train.init={weights}"]
    warned = typed("segtrain", *start, f"hydra.run.dir={tmp_path / 'a'}")
    assert "20 batch norms were folded" in warned.out
    assert "train.unfold_batches=100, or model.norm=frozen" in warned.out
    given = typed("segtrain", *start, "train.unfold_batches=2", f"hydra.run.dir={tmp_path / 'b'}")
    assert "20 of 20 folded batch norms have statistics of 2 batches" in given.out
    silent = typed("segtrain", *small, f"hydra.run.dir={tmp_path / 'c'}")
    assert "norms were folded" not in silent.out
    idle = typed("segtrain", *small, "train.unfold_batches=1", f"hydra.run.dir={tmp_path / 'd'}")
    assert "0 of 0 folded batch norms" in idle.out


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="SEGTRAIN_DATA names no folder with CamVid and weights")
def test_fine_tuning_from_unfolded_weights_starts_below_scratch(tmp_path: Path) -> None:
    assert DATA is not None
    camvid = tmp_path / "camvid"
    for split in ("train", "trainannot", "val", "valannot"):
        (camvid / split).mkdir(parents=True)
        for path in sorted(Path(DATA, "camvid", split).iterdir())[: 1 if "val" in split else None]:
            (camvid / split / path.name).symlink_to(path)
    run = [
        "model=deeplabv3_mobilenet",
        "dataset=camvid",
        f"dataset.root={camvid}",
        "dataset.crop=[129,129]",
        "optimizer=adamw",
        "optimizer.lr=0.001",
        "train.batch_size=4",
        "train.steps=12",
        "train.precision=fp32",
        "train.threads=1",
        "train.verify=false",
        "log.every=1",
        "log.images=0",
    ]
    weights = f"model.weights={DATA}/weights/mobilenet_v2_imagenet_tvnorm.safetensors"
    losses = {}
    for name, start in (
        ("scratch", ["model.weights=null"]),
        ("tuned", [weights, "train.unfold_batches=10"]),
    ):
        folder = tmp_path / name
        assert typed("segtrain", *run, *start, f"hydra.run.dir={folder}").code == 0
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if line["phase"] == "train"]
    # A new classifier guesses evenly, whatever stands before it.
    assert abs(losses["tuned"][0] - math.log(11)) < 0.2
    assert losses["tuned"][1] < losses["tuned"][0]
    assert sum(losses["tuned"][1:]) < sum(losses["scratch"][1:])
