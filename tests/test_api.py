"""The Python surface does what the commands do, and refuses in one line what it cannot take.

Slips: an image of another shape, type or without a pixel; a text or a path for a list, a list for a
path, None, a class count of 0; a device, a preference that there is not; a tensor given to a
network of objects.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commandline
import numpy as np
import pytest
import torch
from golden import runs
from golden.losses import overrides_of
from PIL import Image

import segtrain
from segtrain.errors import DataError, UserError
from segtrain.runtime.distributed import pick_device

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
    soft = predictor.probabilities(images)
    assert len(soft) == 2
    assert all((one.argmax(0) == many).all() for one, many in zip(soft, maps, strict=True))


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


def test_an_image_without_a_pixel_is_refused(trained):
    predictor = segtrain.load(trained)
    for empty in (np.zeros((0, 0, 3), np.uint8), Image.new("RGB", (0, 5))):
        with pytest.raises(UserError, match=r"image of shape \(., 0, 3\): has no pixels"):
            predictor(empty)
        with pytest.raises(UserError, match="has no pixels"):
            predictor.probabilities(empty)


def test_a_pil_image_is_refused_as_its_file_is(trained, tmp_path):
    predictor = segtrain.load(trained)
    clear = Image.new("RGBA", (8, 8))
    clear.save(tmp_path / "clear.png")
    for image in (clear, tmp_path / "clear.png"):
        with pytest.raises(DataError, match="has transparent pixels; flatten the image to RGB"):
            predictor(image)
    with pytest.raises(DataError, match="the PIL image: colour mode F"):
        predictor(Image.new("F", (8, 8), 0.5))


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
    asked = [f"checkpoint={trained}", "dataset=shapes", "dataset.val=6", "eval.worst=0"]
    commandline.done("segeval", *asked, f"eval.output={tmp_path}")
    measured = json.loads((tmp_path / "metrics.json").read_text())
    own = segtrain.evaluate(segtrain.load(trained))  # on the run's own data
    assert own == segtrain.evaluate(
        segtrain.load(trained),
        "shapes",
        settings=[word for word in SMALL[1:] if "crop" not in word],
    )
    assert segtrain.evaluate(str(trained)) == own
    with_fewer = segtrain.evaluate(segtrain.load(trained), settings=["dataset.val=2"])
    assert with_fewer != own
    fresh = ["dataset.val=6"]
    numbers = segtrain.evaluate(segtrain.load(trained), dataset="shapes", settings=fresh)
    assert numbers["mIoU"] > 0
    assert numbers == {key: measured[key] for key in numbers}
    # the data set as conf/dataset has it, not the run's own
    assert measured["protocol"]["images"] == 6


def test_load_prefers_what_is_asked_and_names_a_missing_run(trained, tmp_path):
    assert segtrain.load(trained, prefer="latest").source.step == 2
    folder = next((trained / "checkpoints").glob("step_*2"))
    assert segtrain.load(folder).source.path == segtrain.load(folder / "model.pt").source.path
    with pytest.raises(UserError, match="does not exist"):
        segtrain.load(tmp_path / "none")


def test_a_path_is_predicted_with_as_what_it_loads(trained, tmp_path):
    photo = tmp_path / "a.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(photo)
    of_path = segtrain.predict(trained, photo, tmp_path / "one")
    loaded = segtrain.predict(segtrain.load(trained), photo, tmp_path / "two")
    assert of_path[photo].read_bytes() == loaded[photo].read_bytes()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: segtrain.load(None), "segtrain.load: None is no path; give that of a run or a"),
        (lambda: segtrain.load(""), "segtrain.load: '' is no path"),
        (lambda: segtrain.load("r", prefer="last"), "prefer=last: not one of best, latest"),
        (lambda: segtrain.create_model("unet", 0), "num_classes=0: give how many classes there"),
        (lambda: segtrain.create_model("unet", "4"), "num_classes='4': give how many classes"),
        (lambda: segtrain.create_model("unet", True), "num_classes=True: give how many classes"),
        (lambda: segtrain.compose("train.steps=7"), r'give a list .*overrides=\["train.steps=7"\]'),
        (lambda: segtrain.compose(None), "overrides=None: give a list of settings"),
        (lambda: segtrain.evaluate(["a", "b"]), "segtrain.evaluate: a list is no network; give w"),
        (lambda: segtrain.evaluate("nowhere"), "nowhere: does not exist"),
        (lambda: segtrain.predict(None, "a", "b"), "segtrain.predict: a NoneType is no network"),
        (lambda: segtrain.predict("r", None, "b"), "segtrain.predict: None is no path; give that"),
        (lambda: segtrain.predict("nowhere", "a", "b"), "nowhere: does not exist"),
        (lambda: segtrain.fit(["train.steps=7"], "a"), "fit: a list is no run; give what seg"),
        (
            lambda: segtrain.fit(segtrain.compose(), None),
            "fit: None is no path; give that of a",
        ),
    ],
)
def test_a_slip_is_refused_in_one_line_that_says_what_to_give(call, said):
    with pytest.raises(UserError, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", ["gpu", "cpu:3", "cuda:x", "cuda:-1", "mps", None])
def test_a_device_that_there_is_not_is_refused_by_those_there_are(trained, device):
    said = f"device={device}: not one of auto, cpu, cuda, and cuda:N"
    with pytest.raises(UserError, match=said):
        segtrain.load(trained, device=device)


def test_one_of_several_gpus_is_taken_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("auto", local_rank=3) == torch.device("cuda", 1)
    assert pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:2: torch sees 2 GPUs here, cuda:0 to cuda:1"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda:1: torch sees no GPU here"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["mask_rcnn_r18", "panet_r18", "box_rpn", "fpn_r18"])
def test_a_tensor_given_to_a_network_of_objects_is_answered_with_what_to_call(name):
    network = segtrain.create_model(name, 3, weights=None, backbone="resnet18")
    for mode in (network.eval(), network.train()):
        with pytest.raises(UserError, match=r"a network of objects reads .*Batch, not a Tensor; "):
            mode(torch.zeros(1, 3, 64, 64))


def pixels(path: Path) -> np.ndarray:
    """The numbers of a label map as its file holds them."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_predict_without_an_output_returns_what_segpredict_writes(trained, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        commandline.save(folder / f"{name}.png", rng.integers(0, 256, (20, 30, 3), np.uint8))
    seen = tmp_path / "seen"
    commandline.done("segpredict", f"checkpoint={trained}", f"input={folder}", f"output={seen}")
    one, two = (pixels(seen / f"{name}.png") for name in ("a", "b"))
    assert len(np.unique(one)) > 1

    def same(found, truth):
        assert type(found) is np.ndarray
        assert found.dtype == truth.dtype
        np.testing.assert_array_equal(found, truth)

    predictor = segtrain.load(trained)
    threads = torch.get_num_threads()
    paths = [folder / "a.png", folder / "b.png"]
    same(segtrain.predict(trained, paths[0]), one)
    same(segtrain.predict(predictor, commandline.load(paths[0])), one)
    same(segtrain.predict(predictor, Image.open(paths[1])), two)
    several = segtrain.predict(predictor, [str(paths[1]), commandline.load(paths[0])])
    same(several[0], two)
    same(several[1], one)
    of_folder = segtrain.predict(predictor, str(folder))
    assert list(of_folder) == paths
    same(of_folder[paths[0]], one)
    same(of_folder[paths[1]], two)
    flipped = segtrain.predict(predictor, paths[0], settings=["eval.flip=true"])
    views = (
        predictor.probabilities(commandline.load(paths[0])),
        predictor.probabilities(np.ascontiguousarray(commandline.load(paths[0])[:, ::-1])),
    )
    np.testing.assert_array_equal(flipped, (views[0] + views[1].flip(-1)).argmax(0).numpy())
    assert (flipped != one).any()
    assert torch.get_num_threads() == threads


def test_predict_refuses_in_one_line_what_has_no_place_to_go(trained):
    predictor = segtrain.load(trained)
    for refused, said in (
        ({"probabilities": True}, "probabilities are written to an output; without one, seg"),
        ({"settings": ["eval.flp=true"]}, r"eval.flp: no such key"),
        ({"settings": ["eval.submission=up"]}, "eval.submission: what a server takes needs an out"),
    ):
        with pytest.raises(UserError, match=said):
            segtrain.predict(predictor, np.zeros((9, 9, 3), np.uint8), **refused)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        segtrain.predict(predictor, "nowhere")


@pytest.mark.slow
def test_predict_without_an_output_returns_the_objects_that_segpredict_writes(tmp_path):
    runs.write_coco(tmp_path / "data")
    words = [word.replace(runs.DATA, str(tmp_path / "data")) for word in overrides_of("mask_rcnn")]
    words = [word for word in words if not word.startswith("train.steps")]
    run = commandline.trained(tmp_path / "run", *words, "train.steps=1", "train.precision=fp32")
    photos = tmp_path / "data" / "images"
    done = ["inference.score=0", "inference.detections=5"]  # one step has learned nothing yet
    seen = tmp_path / "seen"
    truth = tmp_path / "data" / "val.json"
    of = [f"checkpoint={run}", f"input={photos}", f"output={seen}"]
    commandline.done("segpredict", *of, *done)
    written = {
        photo: json.loads((seen / f"{photo.stem}.json").read_text())
        for photo in sorted(photos.iterdir())
    }
    assert segtrain.predict(run, photos, settings=done) == written
    photo = photos / "val_1.png"
    assert len(written[photo]) == 5
    predictor = segtrain.load(run)
    one = segtrain.predict(predictor, commandline.load(photo), settings=done)
    assert one == [{**each, "image_id": 0} for each in written[photo]]
    (named,) = segtrain.predict(predictor, [photo], annotations=truth, settings=done)
    assert named == [{**each, "image_id": 2} for each in written[photo]]
    assert {each["category_id"] for each in one} <= {10, 20, 30, 40, 50}
