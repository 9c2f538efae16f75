"""Facts about TensorFlow's slim that its releases share: variables, their order, and trunks.

A layer's variables are SCOPE/weights (H, W, in, out), of a depthwise convolution
SCOPE/depthwise_weights (H, W, in, multiplier), SCOPE/biases, and those of its batch norm:
SCOPE/BatchNorm/gamma, beta, moving_mean and moving_variance. What else a checkpoint or a graph
holds is no weight of the network.
"""

from __future__ import annotations

import re

from torch import Tensor

from segtrain.weights.family import Unfit, Values, width

PARTS = {
    "weights": "weight",
    "depthwise_weights": "weight",
    "biases": "bias",
    "BatchNorm/gamma": "norm.weight",
    "BatchNorm/beta": "norm.bias",
    "BatchNorm/moving_mean": "norm.running_mean",
    "BatchNorm/moving_variance": "norm.running_var",
}
VARIABLE = re.compile(rf"(?P<scope>.+?)/(?P<part>{'|'.join(PARTS)})")
# What is no variable of a layer: nothing that `torch_layers` named.
NOT_WEIGHTS = {
    r"(?!.*\.(weight|bias|norm\.\w+)$)": "not a weight of the network: a counter, a moving average "
    "or a constant of the graph"
}

XCEPTION = re.compile(r"(?P<name>xception_(41|65|71))/entry_flow/conv1_1\.weight")
ENTRY = {"xception_41": 3, "xception_65": 3, "xception_71": 5}  # blocks of the entry flow
MIDDLE = {"xception_41": 8, "xception_65": 16, "xception_71": 16}  # units of the middle flow
CONVOLUTIONS = (1, 2, 3)  # of a module

# Inverted residual blocks of MobileNet-v2 that end each of our four stages.
MOBILENET_ENDS = (2, 5, 12, 16)
MOBILENET_WIDTH = 32  # of its first convolution, at depth multiplier 1
THEIR_MOBILENET_EPS = 1e-3
OUR_EPS = 1e-5


def torch_layers(values: Values) -> dict[str, Tensor]:
    """Return the variables as SCOPE.weight, SCOPE.bias, SCOPE.norm.weight, ... in torch's order.

    What is no variable of a layer keeps its name.
    """
    return dict(_turned(key, value) for key, value in values.items())


def _turned(key: str, value: Tensor) -> tuple[str, Tensor]:
    match = VARIABLE.fullmatch(key)
    if match is None:
        return key, value
    scope = match["scope"]
    part = match["part"]
    if part == "weights" and value.dim() == 4:
        value = value.permute(3, 2, 0, 1).contiguous()
    if part == "depthwise_weights":
        if value.dim() != 4 or value.shape[3] != 1:
            raise Unfit(f"{key} is {tuple(value.shape)}, ours has one filter per channel")
        value = value.permute(2, 3, 0, 1).contiguous()
    return f"{scope}.{PARTS[part]}", value


def pair(scope: str, conv: str, norm: str) -> list[tuple[str, str]]:
    """Return the rules for a convolution and its batch norm."""
    scope = re.escape(scope)
    return [(rf"{scope}\.norm\.", norm), (rf"{scope}\.", conv)]


def separable(scope: str, to: str) -> list[tuple[str, str]]:
    """Return the rules for a separable convolution of a head: with a ReLU behind either part."""
    return [
        *pair(f"{scope}_depthwise", f"{to}0.", f"{to}1."),
        *pair(f"{scope}_pointwise", f"{to}3.", f"{to}4."),
    ]


def xception(state: Values) -> str | None:
    """Return the scope of an Xception, "xception_65"; None for another network. Errors: Unfit."""
    found = next((match for key in state if (match := XCEPTION.fullmatch(key))), None)
    if found is None:
        return None
    name = found["name"]
    unit = rf"{name}/middle_flow/block1/unit_(\d+)/.*"
    units = {int(match[1]) for key in state if (match := re.fullmatch(unit, key))}
    if units != set(range(1, MIDDLE[name] + 1)):
        raise Unfit(f"its middle flow has {len(units)} units, {name} has {MIDDLE[name]}")
    return name


def xception_names(name: str, to: str = "backbone.") -> list[tuple[str, str]]:
    """Return rules for an Xception's trunk."""
    rules = [
        *pair(f"{name}/entry_flow/conv1_1", f"{to}stem.0.", f"{to}stem.1."),
        *pair(f"{name}/entry_flow/conv1_2", f"{to}stem.3.", f"{to}stem.4."),
    ]
    modules = [(f"entry_flow/block{n + 1}/unit_1", f"entry.{n}") for n in range(ENTRY[name])]
    modules += [(f"middle_flow/block1/unit_{n + 1}", f"middle.{n}") for n in range(MIDDLE[name])]
    modules += [(f"exit_flow/block{n + 1}/unit_1", f"exit.{n}") for n in range(2)]
    for theirs, ours in modules:
        module = f"{name}/{theirs}/xception_module"
        for n in CONVOLUTIONS:
            conv = f"{to}{ours}.convs.{n - 1}."
            scope = f"{module}/separable_conv{n}"
            rules += [
                *pair(f"{scope}_depthwise", f"{conv}depthwise.", f"{conv}depthwise_norm."),
                *pair(f"{scope}_pointwise", f"{conv}pointwise.", f"{conv}pointwise_norm."),
            ]
        shortcut = f"{to}{ours}.shortcut."
        rules += pair(f"{module}/shortcut", f"{shortcut}0.", f"{shortcut}1.")
    return rules


def mobilenet(state: dict[str, Tensor]) -> bool:
    """Tell whether it is a MobileNet-v2; if so, its variances are made to fit our eps.

    Errors: Unfit for another width than 1.
    """
    first = "MobilenetV2/Conv.weight"
    if first not in state:
        return False
    if width(state, first) != MOBILENET_WIDTH:
        raise Unfit(
            f"its first convolution gives {width(state, first)} channels, ours {MOBILENET_WIDTH} "
            "(depth multiplier 1)"
        )
    for key in state:
        if key.startswith("MobilenetV2/") and key.endswith(".norm.running_var"):
            state[key] = state[key] + (THEIR_MOBILENET_EPS - OUR_EPS)
    return True


def mobilenet_names(to: str = "backbone.") -> list[tuple[str, str]]:
    """Return rules for a MobileNet-v2's trunk."""
    first = "MobilenetV2/expanded_conv"
    rules = [
        *pair("MobilenetV2/Conv", f"{to}stem.0.0.", f"{to}stem.0.1."),
        *pair(f"{first}/depthwise", f"{to}stem.1.conv.0.0.", f"{to}stem.1.conv.0.1."),
        *pair(f"{first}/project", f"{to}stem.1.conv.1.", f"{to}stem.1.conv.2."),
    ]
    start = 1
    for stage, end in enumerate(MOBILENET_ENDS):
        for number in range(start, end + 1):
            block = f"{to}stages.{stage}.{number - start}.conv."
            rules += [
                *pair(f"{first}_{number}/expand", f"{block}0.0.", f"{block}0.1."),
                *pair(f"{first}_{number}/depthwise", f"{block}1.0.", f"{block}1.1."),
                *pair(f"{first}_{number}/project", f"{block}2.", f"{block}3."),
            ]
        start = end + 1
    return rules


def beta(state: Values) -> str | None:
    """Return the scope of a ResNet's beta variant, "resnet_v1_101"; None for another network."""
    found = (re.fullmatch(r"(resnet_v1_\d+)/conv1_1\.weight", key) for key in state)
    return next((match[1] for match in found if match), None)


def beta_names(state: Values, scope: str, to: str = "backbone.") -> list[tuple[str, str]]:
    """Return rules for the trunk of a ResNet's beta variant."""
    rules = [
        *pair(f"{scope}/conv1_1", f"{to}stem.0.0.", f"{to}stem.0.1."),
        *pair(f"{scope}/conv1_2", f"{to}stem.0.3.", f"{to}stem.0.4."),
        *pair(f"{scope}/conv1_3", f"{to}stem.0.6.", f"{to}stem.1."),
    ]
    unit = rf"({scope}/block([1-4])/unit_(\d+)/bottleneck_v1)/conv1\.weight"
    for key in state:
        if match := re.fullmatch(unit, key):
            block = f"{to}stages.{int(match[2]) - 1}.{int(match[3]) - 1}."
            for n in (1, 2, 3):
                rules += pair(f"{match[1]}/conv{n}", f"{block}conv{n}.", f"{block}bn{n}.")
            downsample = f"{block}downsample."
            rules += pair(f"{match[1]}/shortcut", f"{downsample}0.", f"{downsample}1.")
    return rules
