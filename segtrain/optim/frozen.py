"""Keep parts of a network as they are while the rest trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from segtrain.errors import UserError, did_you_mean


@runtime_checkable
class HasBackbone(Protocol):
    """A model that tells its backbone's parameters from the rest; without, all are the head's."""

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that get the backbone's learning-rate factor."""
        ...


def freeze_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Take the gradient from parts of `model`, and hold the statistics of their batch norms.

    A name is `backbone` (what `model.backbone_parameters()` yields), `head` (the rest), or the path
    of a module, `backbone.layer1`. Errors: UserError for a name that is no part, naming those there
    are.
    """
    frozen = {id(parameter) for name in names for parameter in _parameters(model, name)}
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    for module in model.modules():
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if isinstance(module, _NormBase) and own and frozen.issuperset(own):
            module.register_forward_pre_hook(_hold)


def _hold(module: nn.Module, inputs: object) -> None:
    """Use the running statistics in training too, which then do not change."""
    module.eval()


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    if name in ("backbone", "head") and isinstance(model, HasBackbone):
        backbone = list(model.backbone_parameters())
        inside = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
        return backbone if name == "backbone" else rest
    try:
        return list(model.get_submodule(name).parameters())
    except AttributeError:
        known = [path for path, _ in model.named_modules() if path]
        parts = ", ".join(child for child, _ in model.named_children())
        raise UserError(
            f"optimizer.freeze={name}: {type(model).__name__} has no such part; it has "
            f"{parts}.{did_you_mean(name, known)}"
        ) from None
