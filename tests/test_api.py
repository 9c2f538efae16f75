"""The Python surface does what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commandline
import numpy as np
import pytest
import torch
from PIL import Image

import segtrain
from segtrain.errors import UserError

SMALL = [
    "dataset=shapes",
    "dataset.train=16",
    "dataset.val=5",
    "dataset.size=[48,64]",
    "dataset.crop=[48,48]",
]
RUN = [
    "train.steps=2",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.eval_every=2",
    "train.ema=0.9",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commandline.trained(tmp_path_factory.mktemp("api") / "run", *SMALL, *RUN)


def test_importing_segtrain_imports_neither_torch_nor_hydra():
    code = (
        "import sys, segtrain; heavy = {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; assert segtrain.__version__; segtrain.compose; "
        "assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compose_gives_the_config_of_the_command_line():
    run = segtrain.compose(["model=deeplabv3plus", "train.steps=7", "optimizer=sgd"])
    assert run.train.steps == 7
    assert run.optimizer["_target_"].endswith(".sgd")
    assert run.dataset["_target_"] == "segtrain.datasets.shapes.Shapes"
    assert segtrain.compose().train.steps == 500


def test_compose_says_what_was_meant():
    with pytest.raises(UserError, match=r"train.stepz: no such key.*train.steps"):
        segtrain.compose(["train.stepz=7"])
    with pytest.raises(UserError, match=r"model=deeplabv3pluss: no such model.*deeplabv3plus"):
        segtrain.compose(["model=deeplabv3pluss"])
    with pytest.raises(UserError, match="optimizer"):
        segtrain.compose(["+optimizer.lrr=1"])


def test_create_model_maps_images_to_logits_of_their_size():
    model = segtrain.create_model("deeplabv3plus_r18", num_classes=4, weights=None).eval()
    with torch.inference_mode():
        logits = model(torch.zeros(2, 3, 50, 70))["logits"]
    assert logits.shape == (2, 4, 50, 70)
    assert torch.isfinite(logits).all()


def test_create_model_names_a_wrong_argument_model_and_value():
    with pytest.raises(UserError, match=r"backbon.*backbone"):
        segtrain.create_model("deeplabv3plus_r18", 4, backbon="resnet18")
    with pytest.raises(UserError, match="deeplabv3plus"):
        segtrain.create_model("deeplabv3plus_r19", 4)
    with pytest.raises(UserError, match="resnet18"):
        segtrain.create_model("deeplabv3plus_r18", 4, backbone="resnet19")


def test_a_predictor_gives_the_same_map_for_an_array_a_tensor_and_a_file(trained, tmp_path):
    predictor = segtrain.load(trained)
    assert predictor.averaged
    assert not predictor.network.training
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    maps = [
        predictor(image),
        predictor(torch.from_numpy(image).permute(2, 0, 1)),
        predictor(tmp_path / "a.png"),
        predictor(str(tmp_path / "a.png")),
        predictor(Image.open(tmp_path / "a.png")),
        predictor(Image.fromarray(image).convert("RGBA")),
    ]
    assert maps[0].shape == (37, 53)
    assert maps[0].dtype == torch.uint8
    assert int(maps[0].max()) < 6
    assert all((other == maps[0]).all() for other in maps[1:])
    normalised = predictor.network.preprocess(
        torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([[37, 53]])
    )
    with torch.inference_mode():
        direct = predictor.network(normalised)["logits"][0].argmax(0)
    assert (direct == maps[0]).all()


def test_a_list_of_images_gives_a_list_of_maps(trained):
    predictor = segtrain.load(trained)
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]
    maps = predictor(images)
    assert len(maps) == 2
    assert all((one == predictor(image)).all() for one, image in zip(maps, images, strict=True))


def test_fit_has_the_bits_of_the_command(trained, tmp_path):
    summary = segtrain.fit(segtrain.compose([*SMALL, *RUN]), tmp_path / "run")
    assert summary["status"] == "complete"
    ours = tmp_path / "run" / "metrics.jsonl"
    assert ours.read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert "complete already" in commandline.done("segtrain", f"resume={tmp_path / 'run'}")
    with pytest.raises(UserError, match="from Python one process trains"):
        segtrain.fit(segtrain.compose([*SMALL, *RUN, "train.processes=2"]), tmp_path / "two")
    with pytest.raises(UserError, match="holds a run already"):
        segtrain.fit(segtrain.compose([*SMALL, *RUN]), tmp_path / "run")


def test_probabilities_are_the_softmax_of_the_network_and_give_the_map(trained):
    predictor = segtrain.load(trained)
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    found = predictor.probabilities(image)
    assert found.shape == (6, 37, 53)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(0), torch.ones(37, 53))
    assert (found.argmax(0) == predictor(image)).all()
    normalised = predictor.network.preprocess(
        torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([[37, 53]])
    )
    with torch.inference_mode():
        direct = predictor.network(normalised)["logits"][0].softmax(0)
    torch.testing.assert_close(found, direct)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (1, 8, 8, 3)])
def test_an_image_of_the_wrong_shape_is_refused_by_its_shape(trained, shape):
    with pytest.raises(UserError, match="give uint8 RGB"):
        segtrain.load(trained)(np.zeros(shape, np.uint8))


def test_an_image_of_floats_or_a_missing_one_is_refused(trained):
    with pytest.raises(UserError, match="float32"):
        segtrain.load(trained)(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(segtrain.errors.SegtrainError, match=r"nowhere.png"):
        segtrain.load(trained)("nowhere.png")
    with pytest.raises(UserError, match=r"int: give uint8 RGB.*a path or a PIL image"):
        segtrain.load(trained)([0])


def test_evaluate_equals_segeval_and_training(trained, tmp_path):
    run = segtrain.load(trained).run
    assert run.dataset["val"] == 5
    asked = [f"checkpoint={trained}", "dataset=shapes", "eval.worst=0"]
    commandline.done("segeval", *asked, f"eval.output={tmp_path}")
    measured = json.loads((tmp_path / "metrics.json").read_text())
    own = segtrain.evaluate(segtrain.load(trained))  # on the run's own data
    assert own == segtrain.evaluate(
        segtrain.load(trained),
        "shapes",
        settings=[word for word in SMALL[1:] if "crop" not in word],
    )
    with_fewer = segtrain.evaluate(segtrain.load(trained), settings=["dataset.val=2"])
    assert with_fewer != own
    numbers = segtrain.evaluate(segtrain.load(trained), dataset="shapes")
    assert numbers["mIoU"] > 0
    assert numbers == {key: measured[key] for key in numbers}
    # the data set as conf/dataset has it, not the run's own
    assert measured["protocol"]["images"] == 64


def test_load_prefers_what_is_asked_and_names_a_missing_run(trained, tmp_path):
    assert segtrain.load(trained, prefer="latest").source.step == 2
    folder = next((trained / "checkpoints").glob("step_*2"))
    assert segtrain.load(folder).source.path == segtrain.load(folder / "model.pt").source.path
    with pytest.raises(UserError, match="does not exist"):
        segtrain.load(tmp_path / "none")
