"""Kinds of norm: the frozen batch norm by hand and against torchvision's, and the other kinds."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from segtrain.backbones.resnet import ResNet
from segtrain.errors import UserError
from segtrain.layers.norm import FrozenBatchNorm, norm_factory
from segtrain.optim.optimizers import parameter_groups


def statistics(channels=6):
    """A batch norm that has seen data: no statistic is where it started."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        norm.num_batches_tracked.fill_(7)
    return norm


def frozen(norm):
    result = FrozenBatchNorm(norm.num_features, norm.eps)
    result.load_state_dict(norm.state_dict())  # strict: the names are BatchNorm2d's
    return result


def test_frozen_batch_norm_is_batch_norm_in_evaluation_and_torchvisions_frozen_one():
    norm = statistics()
    x = torch.randn(3, 6, 5, 7, requires_grad=True)
    theirs = FrozenBatchNorm2d(6)
    theirs.load_state_dict(
        {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    )
    mine = frozen(norm).train()
    g = torch.randn(3, 6, 5, 7)
    for other in (norm.eval(), theirs):
        torch.testing.assert_close(mine(x), other(x))
        torch.testing.assert_close(
            torch.autograd.grad(mine(x), x, g), torch.autograd.grad(other(x), x, g)
        )


def test_frozen_batch_norm_by_hand():
    norm = FrozenBatchNorm(1, eps=0.0)
    norm.load_state_dict(
        {
            "weight": torch.tensor([3.0]),
            "bias": torch.tensor([1.0]),
            "running_mean": torch.tensor([2.0]),
            "running_var": torch.tensor([4.0]),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    # 3 (x - 2) / 2 + 1
    assert norm(torch.tensor([0.0, 2.0, 4.0]).view(1, 1, 1, 3)).flatten().tolist() == [
        -2,
        1,
        4,
    ]


def test_from_scratch_it_lets_everything_through():
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm(6)(x), x, rtol=1e-5, atol=1e-5)


def test_it_keeps_the_dtype_under_autocast():
    assert frozen(statistics())(torch.randn(1, 6, 2, 2).bfloat16()).dtype == torch.bfloat16


def test_training_steps_and_train_mode_leave_it_as_it_was():
    layer = frozen(statistics())
    net = nn.Sequential(nn.Conv2d(3, 6, 1), layer).train()
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.SGD(parameter_groups(net, lr=1.0, weight_decay=0.1), lr=1.0)
    for _ in range(2):
        net(torch.randn(2, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert [p.grad for p in layer.parameters()] == [None, None]
    # torch's own, for contrast, moves in train mode even if its affine is held: the trap that the
    # type is against.
    sleeping = statistics().requires_grad_(False)
    mean = sleeping.running_mean.clone()
    sleeping.train()(torch.randn(2, 6, 4, 4))
    assert not torch.equal(sleeping.running_mean, mean)


def test_synchronised_conversion_leaves_it_alone():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(frozen(statistics()), nn.BatchNorm2d(6))
    )
    assert [type(layer) for layer in net] == [FrozenBatchNorm, nn.SyncBatchNorm]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_frozen_trunk_has_batch_norms_state_but_none_of_its_layers(name):
    with torch.device("meta"):
        cold = ResNet(name, norm="frozen")
        warm = ResNet(name, norm="batch")
    assert {k: v.shape for k, v in cold.state_dict().items()} == {
        k: v.shape for k, v in warm.state_dict().items()
    }
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in cold.modules())
    trained = {n for n, p in cold.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in cold.named_parameters() if p.ndim == 4}  # convolutions only
    assert (
        sum(isinstance(m, FrozenBatchNorm) for m in cold.modules())
        == {"resnet18": 20, "resnet50": 53}[name]
    )


def test_the_other_kinds():
    group = norm_factory("group")(48)
    none = norm_factory("none")(48)
    batch = norm_factory("batch", 0.05, 1e-3)(48)
    assert isinstance(group, nn.GroupNorm)
    assert group.num_groups == 16
    assert isinstance(none, nn.Identity)
    assert isinstance(batch, nn.BatchNorm2d)
    assert (batch.momentum, batch.eps) == (0.05, 1e-3)
    assert norm_factory("frozen", eps=1e-3)(48).eps == 1e-3
    with pytest.raises(
        UserError, match=r"norm=layer is unknown. Known: batch, group, frozen, none"
    ):
        norm_factory("layer")
