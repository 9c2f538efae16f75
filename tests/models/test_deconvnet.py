"""DeconvNet, and the statistics of batch norm that its release estimates after training."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from run_folders import BASE, assert_same_bits
from torch import nn
from torch.nn import functional as F

from segtrain.checkpoints import reading
from segtrain.config.compose import compose_config
from segtrain.config.files import masked_container, to_yaml
from segtrain.config.schema import typed
from segtrain.engine import batch_norm
from segtrain.errors import Interrupted, UserError
from segtrain.models.deconvnet import DeconvNet, unpool
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

WIDTHS = {  # the released network: out channels in order
    "encoder": [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    "decoder": [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 64],
}


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DeconvNet(*args, **kwargs)


def tiny(classes=3, code=8):
    torch.manual_seed(0)
    return DeconvNet(classes, "vgg11", code=code)


def layers(part, kind):
    return [layer for layer in part.modules() if isinstance(layer, kind)]


# ---------------------------------------------------------------------- the network


def test_the_parameter_count_is_the_papers():
    model = on_meta(21)
    norms = sum(p.numel() for layer in layers(model, nn.BatchNorm2d) for p in layer.parameters())
    assert sum(p.numel() for p in model.parameters()) == 251_805_653  # "about 252 million"
    assert norms == 33_408


def test_the_layers_are_those_of_the_released_network():
    model = on_meta(21)
    assert [c.out_channels for c in layers(model.backbone, nn.Conv2d)] == WIDTHS["encoder"]
    assert [c.out_channels for c in layers(model.decoder, nn.Conv2d)] == WIDTHS["decoder"]
    fc6 = model.code[0]
    fc7 = model.code[3]
    up = model.code[6]
    assert [tuple(c.weight.shape) for c in (fc6, fc7, up)] == [
        (4096, 512, 7, 7),
        (4096, 4096, 1, 1),
        (4096, 512, 7, 7),
    ]
    # all but the score
    assert len(layers(model, nn.BatchNorm2d)) == len(layers(model, nn.ReLU)) == 29
    assert not layers(model, nn.Dropout)


@pytest.mark.parametrize("backbone", ["vgg11", "vgg13"])
def test_the_decoder_mirrors_a_smaller_trunk(backbone):
    model = on_meta(5, backbone)
    down = [[c.in_channels for c in layers(b, nn.Conv2d)] for b in model.backbone.blocks]
    up = [[c.out_channels for c in layers(b, nn.Conv2d)] for b in model.decoder]
    down[0][0] = 64  # the image's 3 channels have no mirror image
    assert up == [block[::-1] for block in down[::-1]]


def test_batch_norm_starts_as_in_the_release_and_the_decoder_gaussian():
    model = tiny()
    for norm in layers(model, nn.BatchNorm2d):
        assert norm.eps == 1e-9
        assert (norm.weight == 1).all()
        assert torch.equal(norm.bias, torch.full_like(norm.bias, 0.001))
    for conv in [model.score, model.code[6], *layers(model.decoder, nn.Conv2d)]:
        assert abs(conv.weight.std() - 0.01) < 0.002
        assert (conv.bias == 0).all()


def test_unpooling_puts_every_maximum_back_and_nothing_else():
    x = torch.tensor([[[[1.0, 2, 5, 0], [4, 3, 0, 0], [0, 0, 7, 8], [9, 0, 6, 0]]]])
    values, where = F.max_pool2d(x, 2, 2, return_indices=True)
    expected = [[0, 0, 5, 0], [4, 0, 0, 0], [0, 0, 0, 8], [9, 0, 0, 0]]
    assert unpool(values, where)[0, 0].tolist() == expected


def test_unpooling_is_the_same_where_torch_is_told_to_be_deterministic():
    x = torch.randn(2, 3, 6, 8).requires_grad_()
    values, where = F.max_pool2d(x, 2, 2, return_indices=True)
    plain = unpool(values, where)
    gradient = torch.autograd.grad(plain.square().sum(), x, retain_graph=True)[0]
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError):
            F.max_unpool2d(values, where, [2, 2])  # the reason for the other way
        strict = unpool(values, where)
        assert torch.equal(torch.autograd.grad(strict.square().sum(), x)[0], gradient)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(strict, plain)


def test_the_network_is_the_one_written_out_with_deconvolutions():
    """Independent reference: functional pools with positions, and real transposed convolutions with
    the kernel turned.
    """
    model = tiny().train()
    x = torch.randn(2, 3, 224, 224)

    def norm_relu(y, norm):
        mean = y.mean((0, 2, 3), keepdim=True)
        var = y.var((0, 2, 3), keepdim=True, unbiased=False)
        scaled = (y - mean) / (var + 1e-9).sqrt()
        return (scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).clamp(min=0)

    with torch.no_grad():
        y = x
        places = []
        for block in model.backbone.blocks:
            for conv, norm, _ in zip(*[iter(block)] * 3, strict=True):
                y = norm_relu(F.conv2d(y, conv.weight, conv.bias, padding=1), norm)
            y, where = nn.MaxPool2d(2, 2, return_indices=True)(y)
            places.append(where)
        fc6, n6, _, fc7, n7, _, up, n8, _ = model.code
        y = norm_relu(F.conv2d(y, fc6.weight, fc6.bias), n6)
        assert y.shape == (2, 8, 1, 1)
        y = norm_relu(F.conv2d(y, fc7.weight, fc7.bias), n7)
        y = norm_relu(F.conv_transpose2d(y, up.weight, up.bias), n8)
        for block in model.decoder:
            y = nn.MaxUnpool2d(2, 2)(y, places.pop())
            for conv, norm, _ in zip(*[iter(block)] * 3, strict=True):
                kernel = conv.weight.flip(2, 3).transpose(0, 1)
                y = norm_relu(F.conv_transpose2d(y, kernel, conv.bias, padding=1), norm)
        expected = F.conv2d(y, model.score.weight, model.score.bias)
        torch.testing.assert_close(model(x)["logits"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "inside"), [((33, 51), (224, 224)), ((300, 200), (320, 224)), ((224, 256), (224, 256))]
)
def test_other_sizes_are_padded_with_zeros_right_and_below_and_cut_back(size, inside):
    model = tiny(2).eval()
    model.score.bias.data.copy_(torch.tensor([1.0, -1.0]))
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([size]), [""])
    seen = []
    hook = model.backbone.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        logits = model(batch)["logits"]
    hook.remove()
    assert logits.shape == (1, 2, *size)
    assert seen[0].shape[-2:] == inside
    assert torch.equal(seen[0][..., : size[0], : size[1]], model.preprocess(images, batch.sizes))
    assert (seen[0][..., size[0] :, :] == 0).all()
    assert (seen[0][..., size[1] :] == 0).all()


def test_a_batch_of_one_has_no_statistics_of_its_1x1_code():
    model = on_meta(5, "vgg11", code=8)
    assert model.min_train_batch == 2
    with pytest.raises(UserError, match="batch_size to at least 2 per process"):
        model(torch.empty(1, 3, 64, 64, device="meta"))
    # a code of 1x2
    assert model(torch.empty(1, 3, 64, 256, device="meta"))["logits"].shape == (
        1,
        5,
        64,
        256,
    )
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).min_train_batch == 1


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match=r"model.code=0: the channels of fc6 and fc7"):
        on_meta(5, "vgg11", code=0)
    with pytest.raises(UserError, match=r"model.weights=caffe: deconvnet offers imagenet"):
        on_meta(5, "vgg11", weights="caffe")
    with pytest.raises(UserError, match=r"model.bn_eps=0: must be above 0, e.g. 1e-9"):
        on_meta(5, "vgg11", bn_eps=0)


# ---------------------------------------------------------------------- batch norm's statistics


def pictures(count, images=3):
    rng = torch.Generator().manual_seed(1)
    pixels = [
        torch.randint(0, 256, (images, 3, 6, 5), dtype=torch.uint8, generator=rng)
        for _ in range(count)
    ]
    return [
        Batch(p, torch.tensor([[6, 5]] * images), [""] * images, masks=torch.zeros(images, 6, 5))
        for p in pixels
    ]


class Normed(nn.Module):
    """Two batch norms, the second behind the first and a dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.second = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, batch):
        return {"logits": self.second(self.drop(self.first(batch.images.float()).square()))}


def test_statistics_become_the_plain_mean_over_the_batches():
    network = Normed().eval()
    batches = pictures(5)
    batch_norm.estimate(
        network, [batches[:2], batches[2:4], batches[4:]], 3, nullcontext(), World()
    )
    means = []
    variances = []
    squares = []
    for batch in batches[:3]:  # as many as asked for, not the rest
        x = batch.images.float().transpose(0, 1).flatten(1)
        means.append(x.mean(1))
        variances.append(x.var(1))
        normed = (x - x.mean(1, keepdim=True)) / (
            x.var(1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        squares.append(normed.square().mean(1))  # dropout is off
    torch.testing.assert_close(network.first.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(network.first.running_var, torch.stack(variances).mean(0))
    torch.testing.assert_close(network.second.running_mean, torch.stack(squares).mean(0))
    assert network.training
    assert network.drop.training
    assert (network.first.momentum, network.second.momentum) == (0.3, 0.1)
    assert network.first.weight.grad is None


def test_estimating_twice_gives_the_same_and_a_signal_ends_it():
    network = Normed()
    batches = pictures(2)
    batch_norm.estimate(network, [batches], 2, nullcontext(), World())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert batch_norm.estimate(network, [batches], 2, nullcontext(), World())
    assert_same_bits(dict(network.state_dict()), before)

    class Told:
        received = "SIGTERM"

    assert not batch_norm.estimate(network, [batches], 2, nullcontext(), World(), Told())
    assert network.first.num_batches_tracked == 0
    assert network.first.momentum == 0.3


@pytest.fixture
def run_folder(tmp_path):
    """`run_folder(name)`: a run of 4 steps with batch norm, validated after 2 and 4."""
    overrides = [
        "train.bn_batches=3",
        "dataset.val=2",
        "dataset.size=[32,32]",
        "train.steps=4",
        "train.eval_every=2",
    ]
    overrides += [
        "train.save_every=1",
        "train.batch_size=4",
        "model=unet",
        "model.width=2",
        "log.images=0",
    ]

    def make(name):
        cfg, _ = compose_config([*BASE, *overrides])
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(masked_container(cfg)))
        return typed(masked_container(cfg)), folder

    return make


class Broken(Exception):
    pass


def test_a_resumed_run_with_estimated_statistics_ends_in_the_bits_of_an_unbroken_one(
    run_folder, monkeypatch
):
    from segtrain.engine import train

    run, unbroken = run_folder("unbroken")
    calls = []
    estimate = batch_norm.estimate
    monkeypatch.setattr(
        batch_norm, "estimate", lambda *args: calls.append(args[2]) or estimate(*args)
    )
    train.fit(run, unbroken, World())
    assert calls == [3, 3]

    run, broken = run_folder("broken")
    update = train.update

    def stop_at_three(run, parts, state, *others):
        if state.step == 3:
            raise Broken
        return update(run, parts, state, *others)

    with monkeypatch.context() as patched:
        patched.setattr(train, "update", stop_at_three)
        with pytest.raises(Broken):
            train.fit(run, broken, World())
    train.fit(run, broken, World())
    ends = [reading.latest(folder / "checkpoints") for folder in (unbroken, broken)]
    assert [end.step for end in ends] == [4, 4]
    assert_same_bits(*(end.read("model") for end in ends))
    counts = {int(v) for k, v in ends[0].read("model").items() if k.endswith("num_batches_tracked")}
    assert counts == {3}
    assert (unbroken / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


def test_a_signal_during_the_estimate_saves_and_stops_also_where_no_image_is_validated(
    run_folder, monkeypatch
):
    from segtrain.engine import train

    # As on a rank that got no signal itself: the estimate alone tells it.
    monkeypatch.setattr(batch_norm, "estimate", lambda *args: False)
    run, folder = run_folder("stopped")
    with pytest.raises(Interrupted, match="while validating step 2: saved"):
        train.fit(run, folder, World())
    newest = reading.latest(folder / "checkpoints")
    assert newest.step == 2
    assert not newest.meta["evaluated"]


def test_a_count_below_one_is_refused():
    with pytest.raises(UserError, match=r"train.bn_batches=0: must be at least 1"):
        typed(masked_container(compose_config(["train.bn_batches=0"])[0]))
