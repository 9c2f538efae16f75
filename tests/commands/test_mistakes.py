"""The mistakes users make: each ends in exactly one line on stderr that names the thing and the way
out, and in its exit code.

Most go through `run_command` in this process, as the console scripts do; the ones about imports are
real processes.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commandline import Ended, command_of, hydra_here
from PIL import Image

from segtrain.commands import exit_codes, main, sweep, train

CLASSES = (
    '{"name": "tiny", "classes": [{"id": 0, "name": "ground"}, {"id": 1, "name": "thing"}, '
    '{"id": 255, "ignore": true}]}'
)
SMALL = [
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=2",
    "train.precision=fp32",
    "train.threads=1",
    "dataset.crop=[32,32]",
    "log.progress=false",
    "writer=[]",
    "log.images=0",
    "train.device=cpu",
]
ROOT = Path(__file__).resolve().parents[2]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("segtrain", "model=fcn")` in this process, from the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> Ended:
        command = command_of(name)
        capsys.readouterr()
        code = 0
        try:
            exit_codes.run_command(name, command, list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """One line with all of `words`, the exit code, no traceback."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.err + ended.out
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("seg"), lines
    for word in words:
        assert word in lines[0], (word, lines[0])


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def make_data(root: Path) -> Path:
    """Four training and two validation images of 32 x 32 in two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            mask = np.zeros((32, 32), np.uint8)
            mask[8:24, 4 + index : 20 + index] = 1
            mask[:2] = 255
            image = rng.integers(0, 100, (32, 32, 3)).astype(np.uint8) + 100 * (mask == 1)[
                ..., None
            ].astype(np.uint8)
            save(root / "images" / split / f"p{index}.png", image)
            save(root / "masks" / split / f"p{index}.png", mask)
    (root / "classes.json").write_text(CLASSES)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a complete run, its data)."""
    place = tmp_path_factory.mktemp("trained")
    root = make_data(place / "data")
    main.run([*on(root), f"hydra.run.dir={place / 'run'}"])
    assert (place / "run" / "summary.json").is_file()
    return place / "run", root


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """The complete run again, free to be damaged."""
    return shutil.copytree(trained[0], tmp_path / "run")


def on(root: Path) -> list[str]:
    return ["dataset=folder", f"dataset.root={root}", *SMALL]


# ---------------------------------------------------------------------- the configuration

# what is typed -> words of the answer
CONFIG: dict[str, list[str]] = {
    "model=deeplabv3pluss": [
        "model=deeplabv3pluss",
        "no such model",
        "Did you mean `deeplabv3plus`?",
    ],
    "dataset=voc2012": ["dataset=voc2012", "no such dataset", "there are", "voc"],
    "modell=deeplabv3plus": ["modell", "Did you mean `model`?"],
    "train.step=5": ["train.step", "Did you mean `train.steps`?"],
    "train.zzz=5": ["train.zzz", "batch_size"],
    "model.outputstride=16": ["model.outputstride", "Did you mean `model.output_stride`?"],
    "dataset.crops=[64,64]": ["dataset.crops", "Did you mean `dataset.crop`?"],
    "optimizer.learning_rate=0.1": ["optimizer.learning_rate", "lr"],
    "optimizer.momentum=0.9": ["optimizer.momentum", "no such key"],
    "+optimizer.momentum=0.9": ["optimizer.momentum", "adamw", "no such argument"],
    "+model.num_clases=3": ["model.num_clases", "no such argument"],
    "model.lr=0.1": ["model.lr", "no such key"],
    "train.steps=abc": ["train.steps", "abc", "Integer"],
    "train.steps=1.5": ["train.steps", "1.5", "Integer"],
    "train.steps=0": ["train.steps=0", "at least 1"],
    "train.steps=": ["train.steps=", "a value is missing"],
    "train.ema=1.5": ["train.ema=1.5", "between 0 and 1"],
    "train.precision=fp8": ["train.precision=fp8", "fp32, bf16, fp16"],
    "model.output_stride=7": ["model.output_stride", "8", "16", "7"],
    "model.backbone=resnet19": ["model.backbone", "resnet19", "Did you mean `resnet18`?"],
    "augment.flip=yes": ["augment.flip", "float", "yes"],
    "eval.scales=big": ["eval.scales", "big"],
    "eval.flip=perhaps": ["eval.flip", "perhaps"],
    "train.batch_size=10 train.processes=4": ["train.batch_size=10", "4 processes", "8 or 12"],
    "train.batch_size=3 train.accumulate=2 train.processes=1": ["train.batch_size=3", "2 or 4"],
    "train.steps": ["train.steps", "key=value"],
    "train.steps=[1,2": ["train.steps=[1,2"],
    "--modell": ["--modell", "no such flag", "--help"],
    "-x": ["-x", "no such flag"],
    "--config-dir=nowhere": ["--config-dir=nowhere", "no such folder"],
    "--config-dir": ["--config-dir", "FOLDER"],
    "resume=nowhere": ["resume=nowhere", "not a run folder"],
    "resume=": ["resume=", "RUN"],
    "model._target_=os.system": ["model._target_", "os.system", "no part of segtrain"],
    "train.init=${nothing.there}": ["train.init", "nothing"],
    "-m model=deeplabv3pluss": ["deeplabv3pluss", "Did you mean `deeplabv3plus`?"],
    "-m train.step=5,6": ["train.step", "Did you mean `train.steps`?"],
    "--cfg job train.step=5": ["train.step", "Did you mean `train.steps`?"],
    "--cfg jobb": ["--cfg", "jobb"],
}
ALONE = [
    "model=deeplabv3pluss",
    "train.step=5",
    "train.steps=abc",
    "model.output_stride=7",
    "--modell",
    "train.batch_size=10 train.processes=4",
    "resume=nowhere",
]


@pytest.mark.row("R7")
@pytest.mark.parametrize("typed", [t for t in CONFIG if t.split()[0] not in ("-m", "--cfg")])
def test_a_mistake_in_the_configuration_is_named_in_one_line(
    run: Run, tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sweep holds its own name of it, and is not to be first imported while this lasts.
    for module in (train, sweep):
        monkeypatch.setattr(module, "start", lambda *_: pytest.fail("training would have started"))
    assert_refused(run("segtrain", *typed.split()), 2, *CONFIG[typed])
    assert list(tmp_path.iterdir()) == []  # and it leaves no trace


@pytest.mark.row("R7")
@pytest.mark.parametrize("typed", [t for t in CONFIG if t.split()[0] in ("-m", "--cfg")])
def test_a_mistake_in_a_sweep_or_question_is_named_in_one_line(
    run: Run, tmp_path: Path, typed: str
) -> None:
    with hydra_here():
        assert_refused(run("segtrain", *typed.split()), 2, *CONFIG[typed])
    assert not list(tmp_path.rglob("config.yaml"))


def test_mistakes_in_the_configuration_end_before_torch_is_imported(tmp_path: Path) -> None:
    code = f"""
import contextlib, sys
from segtrain.commands import exit_codes, main
for typed in {ALONE!r}:
    with contextlib.suppress(SystemExit):
        exit_codes.run_command("segtrain", main.run, typed.split())
        print("no refusal:", typed)
print("torch" in sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ended.stdout == "False\n", ended
    assert len(ended.stderr.splitlines()) == len(ALONE)


def test_one_mistake_in_a_real_process_is_one_line_and_exit_2(command) -> None:
    ended = command("segtrain", "model=deeplabv3pluss")
    assert_refused(
        Ended(ended.returncode, ended.stdout, ended.stderr), 2, "Did you mean `deeplabv3plus`?"
    )


def test_a_damaged_yaml_in_config_dir_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "mine.yaml").write_text("a: [1, 2\nb: }{\n")
    assert_refused(run("segtrain", "--config-dir=my", "model=mine"), 2, "mine.yaml")


def test_a_group_of_a_config_dir_is_among_the_suggestions(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "special.yaml").write_text(
        "_target_: segtrain.models.deeplabv3plus.DeepLabV3Plus\n"
    )
    assert_refused(
        run("segtrain", "--config-dir=my", "model=speciall"), 2, "Did you mean `special`?"
    )


def test_a_mistake_inside_a_file_of_config_dir_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "mine.yaml").write_text(
        "_target_: segtrain.models.deeplabv3plus.DeepLabV3Plus\nbackbon: resnet18\n"
    )
    answer = run("segtrain", "--config-dir", "my", "model=mine")
    assert_refused(answer, 2, "model.backbon", "Did you mean `backbone`?")


# ---------------------------------------------------------------------- the data


def test_a_missing_data_folder_is_named(run: Run) -> None:
    answer = run("segtrain", *on(Path("nowhere")))
    assert_refused(answer, 2, "nowhere", "no such folder", "dataset.root=")


def test_a_missing_split_is_named(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "dataset.val_split=vall")
    assert_refused(answer, 2, "vall", "Did you mean `val`?")


def test_missing_classes_are_asked_for(run: Run, data: Path) -> None:
    (data / "classes.json").unlink()
    assert_refused(
        run("segtrain", *on(data)), 2, "which mask value is which class", "dataset.labels="
    )


MASK = "masks/train/p1.png"
IMAGE = "images/train/p1.png"


def label_34(data: Path) -> None:
    save(data / MASK, np.full((32, 32), 34, np.uint8))


def binary(data: Path) -> None:
    for split in ("train", "val"):
        for path in (data / "masks" / split).iterdir():
            save(path, np.where(np.array(Image.open(path)) == 1, 255, 0).astype(np.uint8))


def rgb_mask(data: Path) -> None:
    save(data / MASK, np.zeros((32, 32, 3), np.uint8))


def other_size(data: Path) -> None:
    save(data / MASK, np.zeros((16, 32), np.uint8))


def jpeg_mask(data: Path) -> None:
    (data / MASK).unlink()
    save((data / MASK).with_suffix(".jpg"), np.zeros((32, 32), np.uint8))


def no_mask(data: Path) -> None:
    (data / MASK).unlink()


def truncated(data: Path) -> None:
    (data / IMAGE).write_bytes((data / IMAGE).read_bytes()[:600])


def empty(data: Path) -> None:
    (data / IMAGE).write_bytes(b"")


def sixteen_bit(data: Path) -> None:
    save(data / IMAGE, np.full((32, 32), 40_000, np.uint16))


def one_pixel(data: Path) -> None:
    save(data / IMAGE, np.zeros((1, 1, 3), np.uint8))


def text(data: Path) -> None:
    (data / IMAGE).write_text("this is no picture\n")


def dangling(data: Path) -> None:
    (data / IMAGE).unlink()
    (data / IMAGE).symlink_to(data / "gone.png")


def folder_as_file(data: Path) -> None:
    (data / IMAGE).unlink()
    (data / IMAGE).mkdir()


def transparent(data: Path) -> None:
    save(data / IMAGE, np.full((32, 32, 4), 100, np.uint8))


SPOILT: list[tuple[Callable[[Path], None], list[str]]] = [
    (label_34, ["p1.png", "34", "classes 0-1", "(x=0, y=0)"]),
    (binary, ["255", "ignored"]),
    (rgb_mask, [MASK, "RGB", "1 channel"]),
    (other_size, [MASK, "32 x 16", "32 x 32"]),
    (jpeg_mask, ["masks/train/p1.jpg", "lossy", "PNG"]),
    (no_mask, [IMAGE, "has no partner"]),
    (truncated, [IMAGE, "truncated"]),
    (empty, [IMAGE, "empty"]),
    (sixteen_bit, [IMAGE, "16 bits", "8 bit"]),
    (one_pixel, [IMAGE, "1 x 1", "32 x 32"]),
    (text, [IMAGE, "is not a PNG"]),
    (dangling, [IMAGE, "gone.png", "does not exist"]),
    (folder_as_file, [IMAGE, "is a folder"]),
    (transparent, [IMAGE, "transparent"]),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_bad_file_is_named_before_and_during_training(
    run: Run, data: Path, spoil, words, when: str
) -> None:
    if when == "during" and spoil is binary:
        pytest.skip(
            "a whole set of 0/255 masks is recognised by looking at all of them, "
            "which train.verify=false forgoes"
        )
    spoil(data)
    answer = run(
        "segtrain", *on(data), "hydra.run.dir=run", f"train.verify={str(when == 'before').lower()}"
    )
    assert_refused(answer, 65, *words)


def test_many_bad_files_make_one_line(run: Run, data: Path) -> None:
    for path in (data / "masks" / "train").iterdir():
        save(path, np.full((32, 32), 34, np.uint8))
    answer = run("segtrain", *on(data), "hydra.run.dir=run")
    assert_refused(answer, 65, "34", "p0.png", "3 more", "segdata verify")


def test_segdata_verify_lists_every_bad_file_and_exits_65(run: Run, data: Path) -> None:
    label_34(data)
    truncated(data)
    (data / "masks" / "val" / "p0.png").write_bytes(b"")
    answer = run("segdata", "verify", *on(data))
    assert answer.code == 65
    assert "Traceback" not in answer.err
    *listed, last = answer.err.splitlines()
    assert len(listed) == 2
    assert "p1.png" in listed[0]
    assert "val/p0.png" in listed[1]
    assert last.startswith("segdata: 2 problems")


def test_a_cmyk_jpeg_is_no_mistake(run: Run, data: Path) -> None:
    (data / IMAGE).unlink()
    Image.new("CMYK", (32, 32), (10, 20, 30, 40)).save((data / IMAGE).with_suffix(".jpg"))
    answer = run("segtrain", *on(data), "hydra.run.dir=run")
    assert (answer.code, answer.err) == (0, "")
    assert (data.parent / "run" / "summary.json").is_file()


def test_a_data_set_that_lost_its_images_after_the_run_is_named_by_resume(
    run: Run, copied: Path
) -> None:
    (copied / "summary.json").unlink()
    assert_refused(
        run("segtrain", f"resume={copied}", "dataset.root=/nowhere/data"),
        2,
        "/nowhere/data",
        "no such folder",
    )


# -------------------------------------------------------- the settings that only training can judge


def test_an_unknown_monitor_is_named_with_what_there_is(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "train.monitor=IoU/thin", "hydra.run.dir=run")
    assert_refused(answer, 2, "train.monitor=IoU/thin", "Did you mean `IoU/thing`?")
    assert not (data.parent / "run" / "checkpoints").exists()


def test_class_weights_of_the_wrong_length_are_named(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "loss.class_weights=[1.0,2.0,3.0]", "hydra.run.dir=run")
    assert_refused(answer, 2, "class_weights", "3", "2")


def test_an_auxiliary_loss_without_an_auxiliary_head_is_named(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "loss=pixel_aux", "hydra.run.dir=run")
    assert_refused(answer, 2, "aux", "model.aux=true")


def test_a_batch_of_one_with_batch_norm_is_named(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "train.batch_size=1", "hydra.run.dir=run")
    assert_refused(answer, 2, "train.batch_size=1", "model.norm=group")


def test_cuda_without_a_gpu_is_named(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = run("segtrain", *on(data), "train.device=cuda", "hydra.run.dir=run")
    assert_refused(answer, 2, "train.device=cuda", "no GPU", "train.device=cpu")


@pytest.mark.parametrize("source", ["nowhere", "junk.pt"])
def test_weights_to_start_from_that_are_none_are_named(
    run: Run, data: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "junk.pt").write_bytes(b"no weights at all")
    answer = run("segtrain", *on(data), f"train.init={source}", "hydra.run.dir=run")
    assert_refused(answer, 2, source)


def test_a_crop_that_is_no_size_is_named(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "dataset.crop=64", "hydra.run.dir=run")
    assert_refused(answer, 2, "dataset.crop=64", "[height, width]")


# ---------------------------------------------------------------------- the run folder


@pytest.mark.row("R23")
def test_a_folder_that_holds_another_run_is_left_alone(run: Run, copied: Path, data: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    answer = run("segtrain", *on(data), f"hydra.run.dir={copied}")
    assert_refused(answer, 2, str(copied), f"resume={copied}", "hydra.run.dir")
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    after.pop(copied / ".lock"), before.pop(copied / ".lock")
    assert after == before


@pytest.mark.row("R23")
def test_a_file_in_place_of_the_run_folder_is_named(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    answer = run("segtrain", *on(data), "hydra.run.dir=run")
    assert_refused(answer, 2, "run", "in the way", "another run folder")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.row("R23")
@pytest.mark.parametrize(("folder", "code"), [("classes.json/run", 2), ("/proc/segtrain/run", 74)])
def test_a_run_folder_that_cannot_be_made_is_named(
    run: Run, data: Path, folder: str, code: int
) -> None:
    place = data / folder  # an absolute folder stays what it is
    assert_refused(
        run("segtrain", *on(data), f"hydra.run.dir={place}"),
        code,
        str(place.parent),
        "another run folder",
    )


@pytest.mark.row("R22")
def test_a_run_folder_in_use_is_exit_73_with_its_holder(
    run: Run, data: Path, tmp_path: Path
) -> None:
    from segtrain.runtime.run_folder import RunLock

    with RunLock(tmp_path / "run"):
        answer = run("segtrain", *on(data), "hydra.run.dir=run")
    assert_refused(answer, 73, "run is in use", f"pid {os.getpid()}", "take another folder")


def test_resuming_a_folder_without_a_run_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    assert_refused(run("segtrain", "resume=thing"), 2, "resume=thing", "no config.yaml")


@pytest.mark.parametrize(
    "change", ["train.steps=5", "model=deeplabv3plus", "optimizer.lr=1", "train.kep=3"]
)
def test_a_forbidden_change_to_a_resumed_run_is_named(run: Run, copied: Path, change: str) -> None:
    assert_refused(
        run("segtrain", f"resume={copied}", change), 2, change, "train.workers", "may change"
    )


def test_a_wrong_value_in_an_allowed_change_is_named(run: Run, copied: Path) -> None:
    assert_refused(
        run("segtrain", f"resume={copied}", "train.workers=many"), 2, "train.workers", "many"
    )


def test_a_damaged_config_of_a_run_is_named(run: Run, copied: Path) -> None:
    (copied / "config.yaml").write_text("train: [1, 2\nb: }{\n")
    assert_refused(run("segtrain", f"resume={copied}"), 2, "config.yaml", "not readable as YAML")


def test_a_run_whose_only_checkpoint_is_damaged_says_so_when_resumed(
    run: Run, copied: Path
) -> None:
    (copied / "summary.json").unlink()
    (model,) = (copied / "checkpoints").glob("step_*/model.pt")
    model.write_bytes(model.read_bytes()[:-100])
    assert_refused(
        run("segtrain", f"resume={copied}"), 2, "checkpoints", "damaged", "hydra.run.dir"
    )


# ---------------------------------------------------------------------- segeval and segpredict

SEGEVAL: dict[str, list[str]] = {
    "dataset.split=val": ["checkpoint=RUN_OR_FILE", "predictions=FILE_OR_DIR"],
    "checkpoint=a predictions=b": ["either", "checkpoint=RUN_OR_FILE"],
    "checkpoint=nowhere": ["nowhere", "does not exist"],
    "checkpoint=": ["checkpoint=", "RUN_OR_FILE"],
    "predictions=nowhere": ["predictions=nowhere", "dataset=NAME"],
    "predictions=nowhere dataset=folder": ["predictions=nowhere", "no such file or folder"],
    "chekpoint=run": ["chekpoint", "Did you mean `checkpoint`?"],
    "--fast": ["--fast", "key=value"],
    "run": ["run", "key=value"],
}


@pytest.mark.parametrize("typed", SEGEVAL)
def test_a_mistake_in_a_segeval_command_is_named(run: Run, typed: str) -> None:
    assert_refused(run("segeval", *typed.split()), 2, *SEGEVAL[typed])


SEGEVAL_SETTINGS: dict[str, list[str]] = {
    "eval.scale=[1]": ["eval.scale", "Did you mean `eval.scales`?"],
    "eval.scales=big": ["eval.scales", "big"],
    "eval.scales=[0]": ["scales", "0"],
    "inference=slid": ["inference=slid", "Did you mean `slide`?"],
    "dataset.split=tset": ["tset", "there is train, val"],
    "eval.weights=first": ["eval.weights=first", "best, latest"],
    "dataset.root=nowhere": ["nowhere", "no such folder"],
    "eval.output=/proc/segtrain": ["/proc/segtrain", "eval.output"],
}


@pytest.mark.parametrize("typed", SEGEVAL_SETTINGS)
def test_a_mistake_in_a_segeval_setting_is_named(
    run: Run, trained: tuple[Path, Path], typed: str
) -> None:
    code = 74 if "/proc/" in typed else 2
    assert_refused(
        run("segeval", f"checkpoint={trained[0]}", typed), code, *SEGEVAL_SETTINGS[typed]
    )


def test_a_damaged_checkpoint_is_named_by_segeval(run: Run, copied: Path) -> None:
    (step,) = (copied / "checkpoints").glob("step_*")
    content = bytearray((step / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (step / "model.pt").write_bytes(content)
    assert_refused(run("segeval", f"checkpoint={step}"), 2, step.name, "damaged", "use another one")
    assert_refused(run("segeval", f"checkpoint={copied}"), 2, str(copied), "no whole checkpoint")


@pytest.mark.parametrize(
    "content", [b"random bytes", b"", pickle.dumps({"a": 1})], ids=["random", "empty", "pickle"]
)
def test_a_foreign_file_is_no_checkpoint(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.pt").write_bytes(content)
    answer = run("segeval", "checkpoint=foreign.pt")
    assert_refused(answer, 2, "foreign.pt", "no segtrain checkpoint", "train.init=FILE")


@pytest.mark.row("R31")
def test_a_checkpoint_of_other_classes_is_named(
    run: Run, trained: tuple[Path, Path], data: Path
) -> None:
    (data / "classes.json").write_text(CLASSES.replace("thing", "cat"))
    answer = run("segeval", f"checkpoint={trained[0]}", f"dataset.root={data}")
    assert_refused(answer, 2, "thing", "cat")


def test_predictions_of_too_few_images_are_named(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    answer = run("segeval", "predictions=mine", *on(data))
    assert_refused(answer, 65, "mine/p0.png", "no prediction")


def test_a_prediction_of_another_size_is_named(run: Run, data: Path, tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        save(tmp_path / "mine" / f"{name}.png", np.zeros((16, 16), np.uint8))
    assert_refused(run("segeval", "predictions=mine", *on(data)), 65, "p0", "16", "32")


def test_a_prediction_with_a_class_that_is_none_is_named(
    run: Run, data: Path, tmp_path: Path
) -> None:
    for name in ("p0", "p1"):
        save(tmp_path / "mine" / f"{name}.png", np.full((32, 32), 7, np.uint8))
    assert_refused(
        run("segeval", "predictions=mine", *on(data)), 65, "mine/p0.png", "value 7", "classes 0-1"
    )


def test_mistakes_of_segpredict_are_named(
    run: Run, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    model = f"checkpoint={trained[0]}"
    assert_refused(run("segpredict", model, "output=out"), 2, "input=... is missing")
    assert_refused(run("segpredict", model, "input=nowhere", "output=out"), 2, "nowhere")
    (tmp_path / "none").mkdir()
    assert_refused(
        run("segpredict", model, "input=none", "output=out", "log.progress=false"),
        2,
        "none",
        "no images",
    )
    (tmp_path / "bad.png").write_text("no picture")
    assert_refused(
        run("segpredict", model, "input=bad.png", "output=out"), 65, "bad.png", "is not a PNG"
    )
    save(tmp_path / "good.png", np.zeros((32, 32, 3), np.uint8))
    answer = run("segpredict", model, "input=good.png", "output=good.png")
    assert_refused(answer, 74, "good.png", "another output")


# ---------------------------------------------------------------------- segdata and segreport


@pytest.mark.parametrize(
    ("name", "typed", "words"),
    [
        ("segdata", "verfy dataset=shapes", ["verfy", "Did you mean `verify`?"]),
        ("segdata", "verify dataset=camvidd", ["camvidd", "Did you mean `camvid`?"]),
        ("segdata", "verify dataset=folder dataset.root=nowhere", ["nowhere", "dataset.root="]),
        ("segdata", "browse --big", ["--big", "key=value"]),
        ("segreport", "nowhere", ["nowhere"]),
        ("segreport", "output=out", ["nothing to report on", "segreport outputs/"]),
        ("segreport", ".", ["no run below this folder"]),
    ],
)
def test_mistakes_of_segdata_and_segreport_are_named(
    run: Run, name: str, typed: str, words: list[str]
) -> None:
    assert_refused(run(name, *typed.split()), 2, *words)


def test_a_misspelt_scalar_to_monitor_is_found_before_the_first_step(run: Run, data: Path) -> None:
    answer = run("segtrain", *on(data), "train.monitor=mIuO", "hydra.run.dir=run")
    assert_refused(answer, 2, "train.monitor=mIuO", "Did you mean `mIoU`?")
    assert not Path("run/checkpoints").exists()
