"""The input is decided once, when a run begins: whoever loads the run reads what training read.

Random weights lie where torch looks for torchvision's, which it does not hash once they are there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commandline import done, refused, trained, typed
from golden import runs
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers
from zoo import EVERY, node

import segtrain
from segtrain.checkpoints import reading, writing
from segtrain.errors import UserError
from segtrain.layers.preprocess import record_of
from segtrain.weights.torchvision_weights import FILES

ONE_STEP = [
    "train.steps=1",
    "train.eval_every=1",
    "train.accumulate=1",
    "train.batch_size=2",
    "schedule.warmup=0",
]
FCN = ["model=fcn", "model.stride=32", "model.pad=81", "model.width=8", *runs.SHAPES, *runs.COMMON]
FCN = [*FCN, *ONE_STEP, "optimizer=sgd", "optimizer.lr=0.0001"]
FEATURES = [*FCN, "model.weights=features"]


# ---------------------------------------------------------------------- random files


def state_of(name: str, version: str) -> dict[str, Tensor]:
    """torchvision's network of this name with random weights; a VGG's classifier as one vector."""
    torch.manual_seed(0)
    if not name.startswith(("vgg", "alexnet")):
        extra = {"init_weights": False} if name == "googlenet" else {}
        return getattr(torchvision.models, name)(weights=None, **extra).state_dict()
    if name.startswith("vgg"):
        letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D"}[name.removesuffix("_bn")]
        features: nn.Module = make_layers(cfgs[letter], name.endswith("_bn"))
        sixth, seventh, inputs = 0, 3, 25088
    else:
        features = torchvision.models.AlexNet().features
        sixth, seventh, inputs = 1, 4, 9216
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):  # Caffe's read larger numbers
            nn.init.kaiming_normal_(layer.weight)
    if version == "IMAGENET1K_FEATURES":
        next(iter(features.modules()))[0].weight.data.div_(58)
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    vector = torch.randn(4096 + inputs) / 100
    for number, width in ((sixth, inputs), (seventh, 4096)):
        state[f"classifier.{number}.weight"] = vector.as_strided((4096, width), (1, 1))
        state[f"classifier.{number}.bias"] = vector[:4096]
    return state


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TORCH_HOME in which every file that is asked for is made, with random weights."""
    from segtrain.weights import torchvision_weights

    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    original = torchvision_weights.torch.hub.load_state_dict_from_url

    def made(url: str, **arguments: Any) -> dict[str, Tensor]:
        file = folder / Path(url).name
        if not file.exists():
            (key,) = (key for key, name in FILES.items() if name == file.name)
            torch.save(state_of(*key), file)
        return original(url, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        patch.setattr(torchvision_weights.torch.hub, "load_state_dict_from_url", made)
        yield home


# ---------------------------------------------------------------------- measured alike


def validated(run: Path) -> dict[str, float]:
    """The numbers of the training's own last validation."""
    return json.loads((run / "summary.json").read_text())["final"]


def measured(run: Path, *arguments: str) -> dict[str, float]:
    """The numbers of `segeval`, the losses too."""
    output = run.parent / f"{run.name}-scores"
    words = [f"checkpoint={run}", f"eval.output={output}", "eval.worst=0", *arguments]
    done("segeval", *words)
    metrics = json.loads((output / "metrics.json").read_text())
    for file in sorted(output.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    del metrics["protocol"]
    return metrics


def kinds(name: str) -> list[list[str]]:
    """For each kind of weights that a model takes, the settings that ask for it, on a small one."""
    config = node(name)
    backbone = config.get("backbone", "")
    width = ["model.width=8"] if "width" in config and name.startswith("fcn") else []
    scratch = "model.weights=null"
    imagenet = "model.weights=imagenet"
    if name == "fcn_alexnet":
        foreign = ["model.backbone=alexnet_torchvision", "model.norm=none", imagenet]
        lines = [[scratch], foreign, ["model.backbone=googlenet", "model.norm=batch", scratch]]
        google = ["model.backbone=googlenet_torchvision", "model.norm=batch"]
        lines += [[*google, scratch], [*google, imagenet]]
    elif name.startswith("deconvnet"):
        small = ["model.backbone=vgg11", "model.code=64"]
        lines = [[*small, scratch], [*small, imagenet]]
    elif backbone.startswith("vgg"):
        plain = "model.norm=none"
        lines = [
            ["model.backbone=vgg11", "model.norm=batch", scratch],
            ["model.backbone=vgg11", plain, imagenet],
            ["model.backbone=vgg16", plain, "model.weights=features"],
        ]
    elif backbone.startswith("resn"):
        # the golden runs start from scratch, where "frozen" is no norm at all
        frozen = ["model.norm=frozen"] if "norm" in config and "fcn" not in name else []
        stem = ["model.stem=torchvision"] if "stem" in config else []
        if name.startswith("encnet"):
            frozen = ["model.norm=batch"]
        lines = [
            ["model.backbone=resnet18", scratch],
            ["model.backbone=resnet18", *frozen, *stem, imagenet],
        ]
        if name == "deeplab":
            lines.append(["model.backbone=resnet18", "model.style=caffe", scratch])
    elif backbone.startswith("mobilenet"):
        lines = [[scratch], [imagenet]]
    elif backbone.startswith("xception"):
        lines = [["model.backbone=xception41", scratch]]
    else:
        lines = [[]]
    return [[*line, *width] for line in lines]


CASES = [(name, line) for name in EVERY for line in kinds(name)]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden runs' data set of objects."""
    folder = tmp_path_factory.mktemp("objects") / "data"
    runs.write_coco(folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("download")
@pytest.mark.parametrize(("name", "line"), CASES, ids=[f"{n}-{' '.join(k)}" for n, k in CASES])
def test_segeval_equals_the_trainings_own_validation_to_the_last_bit(
    name: str, line: list[str], objects: Path, tmp_path: Path
) -> None:
    words = [word.replace(runs.DATA, str(objects)) for word in runs.overrides_of(name)]
    last = {word.partition("=")[0]: word for word in [*words, *ONE_STEP, *line]}
    last["optimizer.lr"] = "optimizer.lr=1e-5"  # one step, and nothing overflows
    run = trained(tmp_path / "run", *last.values())
    expected = validated(run)
    assert expected["loss"] > 0
    assert measured(run) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("download")
def test_another_input_gives_other_numbers_and_is_told(tmp_path: Path) -> None:
    """So equal numbers above say that the input was equal."""
    run = trained(tmp_path / "run", *FEATURES)
    expected = validated(run)
    assert measured(run, "model.input=features") == expected
    assert measured(run, "model.input=null") == expected
    other = measured(run, "model.input=imagenet")
    assert other["loss"] != expected["loss"]
    done("segeval", f"checkpoint={run}", "model.input=imagenet", f"eval.output={tmp_path / 'e'}")
    protocol = json.loads((tmp_path / "e" / "metrics.json").read_text())["protocol"]
    assert protocol["changed"] == {"model.input": "imagenet"}
    assert segtrain.load(run).network.preprocess.told() == "features"
    typed_other = [*FEATURES, "model.input=caffe", f"hydra.run.dir={tmp_path / 'other'}"]
    out = done("segtrain", *typed_other)
    assert "input  caffe; model.weights were trained on features" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        FEATURES,
        [*FCN, "model.backbone=googlenet_torchvision", "model.norm=batch", "model.pad=100"],
        ["model=deeplabv3plus_r18", *runs.SHAPES, *runs.COMMON, *ONE_STEP],
    ],
    ids=["features", "googlenet", "deeplabv3plus"],
)
def test_commands_of_a_user_measure_alike(
    settings: list[str], download: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    if settings[0] == "model=deeplabv3plus_r18":
        settings = [*settings, "optimizer=sgd"]
    weights = [] if "model.weights=features" in settings else ["model.weights=imagenet"]
    for name in ("vgg16", "googlenet", "resnet18"):
        for version in ("IMAGENET1K_FEATURES" if name == "vgg16" else "IMAGENET1K_V1",):
            file = download / "hub" / "checkpoints" / FILES[name, version]
            if not file.exists():
                torch.save(state_of(name, version), file)
    run = tmp_path / "run"
    environment = {"TORCH_HOME": str(download)}
    words = {word.partition("=")[0]: word for word in [*settings, *weights]}
    ended = command(
        "segtrain", f"hydra.run.dir={run}", *words.values(), env=environment, timeout=590
    )
    assert ended.returncode == 0, ended.stderr
    # no weights are looked for when a run is loaded
    nowhere = {"TORCH_HOME": str(tmp_path / "nowhere")}
    ended = command("segeval", f"checkpoint={run}", "eval.output=scores", env=nowhere, timeout=590)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    del metrics["protocol"]
    assert metrics == validated(run)


# ---------------------------------------------------------------------- stored, resumed, carried on


def rewritten(run: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run's checkpoint whose meta was changed before it was sealed."""
    checkpoint = reading.find(run)
    meta = json.loads(json.dumps(checkpoint.meta))
    change(meta)
    payload = {
        name.removesuffix(".pt"): checkpoint.read(name.removesuffix(".pt"))
        for name in checkpoint.files
    }
    writing.save(to / "checkpoints", checkpoint.step, payload, meta)
    return to


def as_before(meta: dict[str, Any]) -> None:
    """Make the meta of a checkpoint one of before `input` was told."""
    del meta["input"]
    del meta["config"]["model"]["input"]
    meta["config"]["version"] = 2


@pytest.mark.slow
@pytest.mark.usefixtures("download")
def test_a_run_of_before_is_measured_with_what_its_weights_were_trained_on(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *FEATURES)
    old = rewritten(run, tmp_path / "old", as_before)
    assert measured(old) == validated(run)
    google = ["model.backbone=googlenet_torchvision", "model.norm=batch", "model.weights=imagenet"]
    run = trained(tmp_path / "google", *FCN, *google)
    old = rewritten(run, tmp_path / "old_google", as_before)
    assert segtrain.load(old).network.preprocess.told() == "tensorflow"
    assert measured(old) == validated(run)


@pytest.mark.slow
def test_a_hostile_record_ends_the_command_in_one_line(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *small("model.input=caffe"))
    records = [
        {"mean": [0.0] * 3, "std": [0.0] * 3},
        {"mean": [float("nan")] * 3, "std": [1.0] * 3},
        {"mean": [0.0], "std": [1.0], "order": "grey"},
        "nonsense",
        [[[]]],
    ]
    for number, record in enumerate(records):
        bad = rewritten(
            run, tmp_path / f"bad_{number}", lambda meta, r=record: meta.update(input=r)
        )
        refused(2, ["input"], "segeval", f"checkpoint={bad}")
        start = [f"train.init={bad}", f"hydra.run.dir={tmp_path / 'next'}"]
        refused(2, ["input"], "segtrain", *start, *small("model.input=null"))


def small(*more: str) -> list[str]:
    """Settings of a run of seconds."""
    return ["model=unet", "model.width=8", *runs.SHAPES, *runs.COMMON, *ONE_STEP, *more]


@pytest.mark.slow
def test_the_input_comes_with_train_init_and_is_told(tmp_path: Path) -> None:
    caffe = trained(tmp_path / "caffe", *small("model.input=caffe"))
    record = reading.find(caffe).meta["input"]
    assert record == {
        "mean": [103.939, 116.779, 123.68],
        "std": [1.0, 1.0, 1.0],
        "order": "bgr",
        "scale": 255.0,
    }
    init = f"train.init={caffe}"
    out = done("segtrain", f"hydra.run.dir={tmp_path / 'next'}", *small(init))
    assert "model.input: caffe, what these weights were trained on" in out
    assert reading.find(tmp_path / "next").meta["input"] == record
    assert measured(tmp_path / "next") == validated(tmp_path / "next")

    out = done("segtrain", f"hydra.run.dir={tmp_path / 'typed'}", *small(init, "model.input=unit"))
    assert "model.input=unit: these weights were trained on caffe" in out
    assert segtrain.load(tmp_path / "typed").network.preprocess.told() == "unit"
    out = done("segtrain", f"hydra.run.dir={tmp_path / 'same'}", *small(init, "model.input=caffe"))
    assert "trained on" not in out

    # a network of another width takes no backbone, so the input stays its own
    more = [init, "model.width=16", "model.norm=batch"]
    out = typed("segtrain", f"hydra.run.dir={tmp_path / 'wide'}", *small(*more)).out
    assert "trained on" not in out


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_input_that_came_with_its_weights(tmp_path: Path) -> None:
    caffe = trained(tmp_path / "caffe", *small("model.input=caffe"))
    words = small(f"train.init={caffe}", "train.save_every=1", "train.keep=5", "train.ema=0.5")
    words = [word for word in words if not word.startswith("train.steps=")]
    whole = trained(tmp_path / "whole", *words, "train.steps=3")
    losses = json.loads((whole / "summary.json").read_text())["final"]
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "summary.json").unlink()
    for step in (2, 3):
        shutil.rmtree(part / "checkpoints" / f"step_{step:08d}")
    done("segtrain", f"resume={part}")
    assert json.loads((part / "summary.json").read_text())["final"] == losses
    assert measured(part, "eval.weights=latest") == losses
    assert record_of(segtrain.load(part).network) == reading.find(caffe).meta["input"]


def test_an_input_that_nobody_knows_is_refused_before_torch_is_loaded() -> None:
    with pytest.raises(UserError, match=r"model\.input: .*Did you mean `caffe`"):
        segtrain.compose(["model=unet", "model.input=cafe"])
    run = segtrain.compose(["model=fcn", "model.input={mean: [1, 2, 3], std: [1, 1, 1]}"])
    assert run.model["input"] == {"mean": [1, 2, 3], "std": [1, 1, 1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "arguments"),
    [
        ("resnet18", "semantic_fpn", {"backbone": "resnet18"}),
        ("mobilenet_v2", "deeplabv3_mobilenet", {}),
        ("googlenet", "fcn_alexnet", {"backbone": "googlenet_torchvision", "norm": "batch"}),
    ],
)
def test_torchvisions_file_starts_by_its_path_what_it_starts_by_its_name(
    name: str, model: str, arguments: dict[str, Any], download: Path
) -> None:
    by_name = segtrain.create_model(model, 3, **arguments, weights="imagenet")
    file = download / "hub" / "checkpoints" / FILES[name, "IMAGENET1K_V1"]
    by_path = segtrain.create_model(model, 3, **arguments, weights=str(file))
    assert by_path.preprocess.same(by_name.preprocess)
    expected = by_name.get_submodule("backbone").state_dict()
    found = by_path.get_submodule("backbone").state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
