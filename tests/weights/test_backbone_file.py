"""`model.weights=FILE`: a known file fills the whole backbone, or is refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import done, refused, trained
from golden import runs
from torch import Tensor

import segtrain
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import VGG, fully_convolutional
from segtrain.checkpoints import reading
from segtrain.config import places
from segtrain.errors import UserError
from segtrain.models.deeplab import DeepLab
from segtrain.weights import backbone_file, detectron_imagenet, families
from segtrain.weights.family import Family, Published, Values


def toy_resnet(values: Values) -> Published:
    """Read a file that somebody's program wrote: our tensors below `net.`, and a classifier."""
    model = "pspnet" if "net.whole" in values else ""
    arguments = {"name": "resnet18", "style": "torchvision"}
    names = [(r"net\.", "backbone.")]
    left_out = {r"fc\.": "the classifier", r"net\.whole": "a mark"}
    return Published(model, arguments, "caffe", values, names, left_out)


def toy_vgg(values: Values) -> Published:
    """Read a VGG11 with fc6 and fc7."""
    names = [(r"vgg\.", "backbone."), (r"classifier\.", "classifier.")]
    return Published("", {"name": "vgg11", "norm": "none"}, "caffe", values, names)


TOYS = (
    Family("a toy", (r"net\.stem\.0\.weight",), toy_resnet),
    Family("a toy VGG", (r"vgg\.blocks\.0\.0\.weight",), toy_vgg),
)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys are the families that are known."""
    monkeypatch.setattr(families, "FAMILIES", TOYS)


def written(path: Path, **changes: Tensor | None) -> Path:
    """The file of a ResNet-18 with other random weights; None leaves a tensor out."""
    torch.manual_seed(5)
    state = {f"net.{key}": value for key, value in ResNet("resnet18").state_dict().items()}
    state = {key: value for key, value in state.items() if "num_batches" not in key}
    state["fc.weight"] = torch.zeros(1000, 512)
    for key, value in changes.items():
        state.pop(f"net.{key}", None)
        if value is not None:
            state[f"net.{key}"] = value
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_a_file_fills_the_backbone_and_brings_its_input(tmp_path: Path) -> None:
    file = written(tmp_path / "net.pth")
    held = torch.load(file, weights_only=True)
    torch.manual_seed(0)
    words = ["model=semantic_fpn", "model.backbone=resnet18", f"model.weights={file}"]
    run = segtrain.compose(words)
    assert run.model["weights"] == str(file)
    for norm in ("batch", "frozen"):
        network = segtrain.create_model(
            "semantic_fpn", 3, backbone="resnet18", weights=str(file), norm=norm
        )
        assert network.preprocess.told() == "caffe"
        for key, value in network.backbone.state_dict().items():
            if "num_batches" not in key:
                assert torch.equal(value, held[f"net.{key}"]), key
    typed = segtrain.create_model(
        "semantic_fpn", 3, backbone="resnet18", weights=str(file), input="fcn"
    )
    assert typed.preprocess.told() == "fcn"


@pytest.mark.slow
def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "net.pth")

    def line(words: str, path: Path, **arguments: object) -> None:
        with pytest.raises(UserError) as error:
            ResNet(**{"name": "resnet18", "weights": path, **arguments})
        text = str(error.value)
        assert text.startswith(f"model.weights={path}: ")
        assert words in text
        assert "\n" not in text

    line("holds a backbone of name=resnet18, the model has name=resnet34", file, name="resnet34")
    line("style=torchvision, the model has style=deep", file, style="deep")
    line("weights of batch norm need norm=batch or norm=frozen", file, norm="group")
    line("no such file, nor a name. Did you mean `imagenet`?", Path("imagnet"))
    short = written(tmp_path / "short.pth", **{"stages.3.1.conv2.weight": None})
    line("stages.3.1.conv2.weight is not in it", short)
    other = written(tmp_path / "other.pth", **{"stem.0.weight": torch.zeros(64, 3, 3, 3)})
    line("stem.0.weight has another shape in it", other)
    nan = written(tmp_path / "nan.pth", **{"stem.1.bias": torch.full((64,), float("nan"))})
    line("stem.1.bias holds values that are not finite", nan)
    whole = written(tmp_path / "whole.pth", whole=torch.zeros(1))
    line("holds a whole network of a toy; start from it with train.init=FILE", whole)


def test_inside_unread_a_network_is_built_from_scratch(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pth"
    with backbone_file.unread(), torch.device("meta"):
        assert ResNet("resnet18", weights=gone).preprocess.told() == "imagenet"
        VGG("vgg11", weights="imagenet")
        fully_convolutional("vgg11", "none", gone, 8)
    with pytest.raises(UserError, match="no such file"):
        ResNet("resnet18", weights=gone)


@pytest.mark.slow
def test_a_file_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.is_place("model.weights")
    (tmp_path / "net.pth").touch()
    (tmp_path / "imagenet").touch()
    run = segtrain.compose(["model=semantic_fpn", "model.weights=net.pth"])
    there = places.from_start(run, str(tmp_path))
    assert there.model["weights"] == str(tmp_path / "net.pth")
    named = places.from_start(segtrain.compose(["model=semantic_fpn"]), str(tmp_path))
    assert named.model["weights"] == "imagenet"
    monkeypatch.setenv("NETS", str(tmp_path))
    run = segtrain.compose(["model=semantic_fpn", "model.weights=${oc.env:NETS}/net.pth"])
    assert run.model["weights"] == f"{tmp_path}/net.pth"


@pytest.mark.slow
def test_a_vggs_wide_layers_come_from_its_file_and_else_each_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fc6 and fc7 would be half a gigabyte on disk: a stride of one makes them of one vector."""
    vector = torch.randn(4096 + 25088, generator=torch.Generator().manual_seed(5))
    trunk = {f"backbone.{key}": value for key, value in VGG("vgg11").state_dict().items()}
    whole = trunk | {
        "classifier.0.weight": vector.as_strided((4096, 25088), (1, 1)),
        "classifier.0.bias": vector[:4096],
        "classifier.3.weight": vector.as_strided((4096, 4096), (1, 1)),
        "classifier.3.bias": vector[4096:8192],
    }
    arguments = {"backbone": "vgg11", "norm": "none", "dilations": [6, 12], "scales": [1.0]}
    file = tmp_path / "vgg.caffemodel"
    file.touch()

    def started(state: dict[str, Tensor]) -> DeepLab:
        published = toy_vgg({})
        read = families.Recognised(TOYS[1], published, state, {}, None)
        monkeypatch.setattr(backbone_file, "read_published", lambda path: read)
        return DeepLab(3, weights=file, **arguments)

    model = started(whole)
    first, second = (branch[0].weight for branch in model.fc)
    assert torch.equal(first, second)
    assert first[0, 0, 0, 0] == vector[0]  # the first filter's first tap
    assert first[-1, 0, 0, 0] == vector[4095]
    assert model.preprocess.told() == "caffe"
    first, second = (branch[0].weight for branch in started(trunk).fc)
    assert not torch.equal(first, second)
    with pytest.raises(UserError, match=r"classifier\.3\.weight has to be \(4096, 4096\)"):
        started(whole | {"classifier.3.weight": torch.zeros(4096, 2)})


@pytest.mark.slow
def test_detectrons_classifier_fills_the_trunk_of_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Caffe2's names: res3_1_branch2b_w is the 3x3 of the second block of conv3."""
    monkeypatch.setattr(families, "FAMILIES", (detectron_imagenet.BACKBONE,))
    random = np.random.default_rng(0)
    blobs = {"fc1000_w": np.zeros((1000, 2048), np.float32), "fc1000_b": np.zeros(1000)}

    def layer(name: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        shape = (outputs, inputs, kernel, kernel)
        blobs[f"{name}_w"] = random.normal(0, 0.05, shape).astype(np.float32)
        blobs[f"{norm}_bn_s"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
        blobs[f"{norm}_bn_b"] = random.normal(0, 0.1, outputs).astype(np.float32)

    layer("conv1", "res_conv1", 64, 3, 7)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 2):
        for block in range(blocks):
            name = f"res{stage}_{block}_branch"
            if block == 0:
                layer(f"{name}1", f"{name}1", 4 * width, inputs, 1)
            layer(f"{name}2a", f"{name}2a", width, inputs, 1)
            layer(f"{name}2b", f"{name}2b", width, width, 3)
            layer(f"{name}2c", f"{name}2c", 4 * width, width, 1)
            inputs = 4 * width
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    network = ResNet("resnet50", style="msra", norm="frozen", weights=file).eval()
    assert network.preprocess.told() == "detectron"
    assert ResNet("resnet50", style="caffe", weights=file).preprocess.told() == "detectron"
    x = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    found = network.stem[:2](x)
    weight, scale, shift = (
        torch.from_numpy(blobs[key]) for key in ("conv1_w", "res_conv1_bn_s", "res_conv1_bn_b")
    )
    expected = torch.nn.functional.conv2d(x, weight, stride=2, padding=3)
    expected = expected * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    block = network.stages[1][1]
    assert torch.equal(block.conv2.weight, torch.from_numpy(blobs["res3_1_branch2b_w"]))
    assert torch.equal(block.bn3.bias, torch.from_numpy(blobs["res3_1_branch2c_bn_b"]))
    with pytest.raises(UserError, match="style=msra, the model has style=torchvision"):
        ResNet("resnet50", weights=file)


@pytest.mark.slow
def test_nothing_of_the_file_is_needed_once_a_run_has_begun(tmp_path: Path) -> None:
    file = written(tmp_path / "net.pth")
    words = ["model=semantic_fpn", "model.backbone=resnet18", *runs.SHAPES, *runs.COMMON]
    words += ["train.accumulate=1", "train.batch_size=2", "optimizer=sgd", "optimizer.lr=1e-5"]
    words += ["schedule.warmup=0", "train.steps=2", "train.eval_every=1", "train.keep=5"]
    words += [f"model.weights={file}"]
    words = list({word.partition("=")[0]: word for word in words}.values())
    run = trained(tmp_path / "run", *words)
    file.unlink()
    assert reading.find(run).meta["input"]["order"] == "bgr"
    done("segeval", f"checkpoint={run}", f"eval.output={tmp_path / 'scores'}", "eval.worst=0")
    assert segtrain.load(run).network.preprocess.told() == "caffe"
    (run / "summary.json").unlink()
    newest = max((run / "checkpoints").glob("step_*"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    done("segtrain", f"resume={run}")
    assert reading.find(run, "latest").step == 2
    refused(2, ["no such file"], "segtrain", f"hydra.run.dir={tmp_path / 'new'}", *words)
