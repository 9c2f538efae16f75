"""`segeval predictions=` gives the numbers of the official tools for what other programs wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapes_judge import corrupted, judged
from coco_judge import CLASSES, TWELVE, judge, made
from commandline import done, load, numbers, refused, save, scored, typed
from context_masks import ID_459, NAMES
from samples import voc_part
from scipy.io import savemat

from segtrain.benchmarks.predictions import find_all
from segtrain.errors import DataError
from segtrain.structures import run_lengths

ROAD_CROP = (256, 512)  # height, width
FEW = {"images": 4, "guesses": 3}


# ---------------------------------------------------------------------- COCO


def coco_arguments(root: Path, kind: str) -> tuple[str, str, str]:
    folder = root / "coco_eval_val2014"
    results = folder / f"results/instances_val2014_fake{kind}100_results.json"
    truth = folder / "annotations/instances_val2014_100.json"
    return f"predictions={results}", "dataset=coco_json", f"dataset.annotations={truth}"


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_the_published_results_of_coco_get_the_published_numbers(
    kind: str, data_root: Path, tmp_path: Path
) -> None:
    arguments = coco_arguments(data_root, kind)
    out = done("segeval", *arguments, f"eval.output={tmp_path}")
    metrics = numbers(tmp_path)
    results, _, truth = (
        json.loads(Path(a.partition("=")[2]).read_text()) if "/" in a else a for a in arguments
    )
    assert metrics == judge(truth, results, kind)  # to the last bit, the AP of every class too
    assert list(metrics)[:12] == [f"{kind}/{name}" for name in TWELVE]
    assert len(metrics) > 60
    folder = data_root / "coco_eval_val2014"
    printed = (
        (folder / "results/val2014_fake_eval_res.txt")
        .read_text()
        .split(f"type={kind}\n")[1]
        .split("type=")[0]
    )
    published = [line.split("=")[-1].strip() for line in printed.splitlines() if "@[" in line]
    assert [f"{metrics[f'{kind}/{name}']:.3f}" for name in TWELVE] == published
    said = re.search(
        rf"{kind} \(AP (\S+), AP50 (\S+), AP75 (\S+?)\)", (folder / "SOURCE.md").read_text()
    )
    assert said
    assert list(said.groups()) == published[:3]
    row = next(line for line in out.splitlines() if line.startswith(kind)).split()[1:]
    assert row == [f"{100 * metrics[f'{kind}/{name}']:.1f}" for name in TWELVE]
    assert f"100 images of val; written to {tmp_path}" in out


@pytest.mark.slow
def test_the_command_as_a_process_says_the_same(data_root: Path, tmp_path: Path) -> None:
    arguments = coco_arguments(data_root, "segm")
    start = [
        sys.executable,
        "-m",
        "segtrain",
        "segeval",
        *arguments,
        f"eval.output={tmp_path / 'a'}",
    ]
    ended = subprocess.run(start, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert numbers(tmp_path / "a") == scored(
        tmp_path / "b", Path(arguments[0].partition("=")[2]), *arguments[1:]
    )


def coco_files(folder: Path, seed: int, **options: Any) -> tuple[dict, list[dict], Path, str]:
    """(truth, results, results file, the argument naming the truth) of a made set."""
    truth, results = made(seed, **options)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return truth, results, folder / "results.json", f"dataset.annotations={folder / 'truth.json'}"


def test_a_file_of_masks_and_boxes_gets_the_numbers_of_both(tmp_path: Path) -> None:
    truth, results, file, annotations = coco_files(tmp_path, 3, boxes=True)
    metrics = scored(tmp_path / "scores", file, "dataset=coco_json", annotations)
    assert metrics == judge(truth, results, "segm") | judge(truth, results, "bbox")
    assert 0 < metrics["segm/AP"] != metrics["bbox/AP"] > 0


def test_masks_alone_get_no_numbers_of_boxes(tmp_path: Path) -> None:
    truth, results, file, annotations = coco_files(tmp_path, 4)
    metrics = scored(tmp_path / "scores", file, "dataset=coco_json", annotations)
    assert metrics == judge(truth, results, "segm")
    assert numbers_beside(file) == metrics


def test_ids_that_are_text_get_the_same_numbers(tmp_path: Path) -> None:
    truth, results, file, annotations = coco_files(tmp_path, 4)
    for image in truth["images"]:
        image["id"] = f"image {image['id']}"
    for entry in [*truth["annotations"], *results]:
        entry["image_id"] = f"image {entry['image_id']}"
    expected = judge(truth, results, "segm")  # in the order of the text
    for entry in results:
        entry["category_id"] = str(entry["category_id"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    file.write_text(json.dumps(results))
    assert scored(tmp_path / "scores", file, "dataset=coco_json", annotations) == expected


def test_boxes_that_are_corners_beside_right_masks_are_told(tmp_path: Path) -> None:
    _, results, file, annotations = coco_files(tmp_path, 4)
    for entry in results:
        x, y, width, height = run_lengths.boxes([entry["segmentation"]])[0].tolist()
        entry["bbox"] = [x, y, width, height]
    file.write_text(json.dumps(results))
    scored(tmp_path / "right", file, "dataset=coco_json", annotations)
    for entry in results:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]
    file.write_text(json.dumps(results))
    output = f"eval.output={tmp_path / 'wrong'}"
    ended = typed("segeval", f"predictions={file}", "dataset=coco_json", annotations, output)
    assert ended.code == 0
    found = re.fullmatch(
        r"note: .*results\.json: ([\d,]+) of ([\d,]+) boxes fit their masks only as corners "
        r"\(x1, y1, x2, y2\), but `bbox` is \[x, y, width, height\]: scores of boxes, and by size, "
        r"are wrong\n",
        ended.err,
    )
    assert found is not None, ended.err
    fit, all_of_them = (int(group.replace(",", "")) for group in found.groups())
    assert len(results) / 2 < fit <= all_of_them == len(results)


def numbers_beside(file: Path) -> dict[str, float]:
    """The same without eval.output: written beside the file."""
    annotations = f"dataset.annotations={file.parent / 'truth.json'}"
    assert "results-scores" in done(
        "segeval", f"predictions={file}", "dataset=coco_json", annotations
    )
    return numbers(file.parent / "results-scores")


def test_no_detection_at_all_is_an_ap_of_zero(tmp_path: Path) -> None:
    truth, _, file, annotations = coco_files(tmp_path, 5)
    file.write_text("[]")
    metrics = scored(tmp_path / "scores", file, "dataset=coco_json", annotations)
    assert metrics == {**judge(truth, [], "segm"), **judge(truth, [], "bbox")}
    assert set(metrics.values()) == {0.0}
    assert f"segm/AP/{CLASSES[3]}" not in metrics


# -------------------------------------------------------- VOC and Context, counted pixel by pixel


def count(pairs: list[tuple[np.ndarray, np.ndarray]], classes: list[int]) -> np.ndarray:
    """(K, K) pixels of (truth, prediction) files, rows = truth.

    Values of the truth that are not in `classes` do not count.
    """
    table = np.zeros((len(classes), len(classes)), np.int64)
    for truth, prediction in pairs:
        assert truth.shape == prediction.shape
        for row, t in enumerate(classes):
            said = prediction[truth == t]
            for column, p in enumerate(classes):
                table[row, column] += np.count_nonzero(said == p)
    return table


def slow_numbers(table: np.ndarray, names: list[str]) -> dict[str, float]:
    """The numbers of a semantic metrics.json, one class after the other."""
    ious = {}
    accuracies = []
    weighted = 0.0
    for k, name in enumerate(names):
        true = int(table[k].sum())
        said = int(table[:, k].sum())
        hit = int(table[k, k])
        if true + said:
            ious[f"IoU/{name}"] = hit / (true + said - hit)
            weighted += true * hit / (true + said - hit)
        if true:
            accuracies.append(hit / true)
    means = {
        "mIoU": sum(ious.values()) / len(ious),
        "pixAcc": int(table.trace()) / int(table.sum()),
    }
    return (
        means
        | {"mAcc": sum(accuracies) / len(accuracies), "fwIoU": weighted / int(table.sum())}
        | ious
    )


def assert_counted(metrics: dict[str, float], table: np.ndarray, names: list[str]) -> None:
    """IoU of a class and pixAcc to the last bit; means, added in another order, to 1e-12."""
    expected = slow_numbers(table, names)
    means = ("mIoU", "mAcc", "fwIoU")
    assert {k: v for k, v in metrics.items() if k not in means} == {
        k: v for k, v in expected.items() if k not in means
    }
    assert metrics == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0.1 < metrics["mIoU"] < 0.9
    assert metrics["mIoU"] != metrics["mAcc"]


def wrong(truth: np.ndarray, values: list[int], seed: int) -> np.ndarray:
    """A prediction: the truth with blocks and single pixels of other values, void ones too."""
    rng = np.random.default_rng(seed)
    said = truth.copy()
    height, width = truth.shape
    for _ in range(6):
        y = rng.integers(0, height - 40)
        x = rng.integers(0, width - 40)
        said[y : y + rng.integers(20, height // 2), x : x + rng.integers(20, width // 2)] = (
            rng.choice(values)
        )
    noisy = (rng.random(truth.shape) < 0.05) | ~np.isin(said, values)
    said[noisy] = rng.choice(values, int(noisy.sum()))
    return said


def test_voc_is_counted_as_by_hand(data_root: Path, tmp_path: Path) -> None:
    root = voc_part(data_root / "voc2012" / "VOCdevkit", tmp_path / "VOC2012", 1, 9)
    ids = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    pairs = []
    for seed, name in enumerate(ids):
        truth = load(root / f"SegmentationClass/{name}.png")
        prediction = wrong(truth, list(range(19)), seed)  # two classes are never predicted
        save(tmp_path / "maps" / f"{name}.png", prediction)
        pairs.append((truth, prediction))
    metrics = scored(tmp_path / "scores", tmp_path / "maps", "dataset=voc", f"dataset.root={root}")
    table = count(pairs, list(range(21)))
    assert table.sum() == sum(np.count_nonzero(truth != 255) for truth, _ in pairs) > 10**6
    names = [name.removeprefix("IoU/") for name in metrics if name.startswith("IoU/")]
    written = json.loads((tmp_path / "scores/confusion.json").read_text())
    assert (np.array(written["counts"]) == table).all()
    assert set(names) <= set(written["classes"])
    assert_counted(metrics, table, written["classes"])
    asked = ["dataset=voc", f"dataset.root={root}"]
    assert (
        scored(tmp_path / "again", tmp_path / "maps", *asked, "eval.prediction_ids=train")
        == metrics
    )
    without = "metric.leave_out=[background]"  # the convention that some papers follow
    kept = [v for k, v in metrics.items() if k.startswith("IoU/") and k != "IoU/background"]
    assert scored(tmp_path / "less", tmp_path / "maps", *asked, without)["mIoU"] == pytest.approx(
        np.mean(kept), abs=1e-12
    )


@pytest.fixture(scope="module")
def scenes(data_root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """PASCAL-Context: (truth, prediction) as stored in official order, 0 background.

    Predictions know no background.
    """
    folder = data_root / "pascal_context" / "59_context_labels"
    truths = {path.stem: load(path) for path in sorted(folder.glob("*.png"))}
    return {
        name: (truth, wrong(truth, list(range(1, 60)), seed))
        for seed, (name, truth) in enumerate(truths.items())
    }


def context_files(root: Path, data_root: Path, scenes: Any, table: np.ndarray) -> list[str]:
    """The sample renumbered by `table`, predictions in `root/maps`; the arguments that name it."""
    sample = data_root / "pascal_context"
    (root / "masks").mkdir(parents=True)
    (root / "JPEGImages").symlink_to(sample / "JPEGImages")
    (root / "val.txt").write_text((sample / "val.txt").read_text())
    for name, (truth, prediction) in scenes.items():
        save(root / "maps" / f"{name}.png", table[prediction])
        if table.dtype == np.uint16:
            savemat(root / f"masks/{name}.mat", {"LabelMap": table[truth]})
        else:
            save(root / f"masks/{name}.png", table[truth])
    return ["dataset=context", f"dataset.root={root}", "dataset.masks=masks"]


OFFICIAL = np.arange(60, dtype=np.uint8)
SORTED = np.array([0, *(1 + sorted(ID_459).index(value) for value in ID_459)], np.uint8)


def test_context_is_counted_as_by_hand_with_and_without_background(
    data_root: Path, tmp_path: Path, scenes: dict
) -> None:
    arguments = [*context_files(tmp_path, data_root, scenes, OFFICIAL), "dataset.ids=official"]
    fewer = scored(tmp_path / "59", tmp_path / "maps", *arguments)
    more = scored(tmp_path / "60", tmp_path / "maps", *arguments, "dataset.classes=60")
    pairs = list(scenes.values())
    assert_counted(fewer, count(pairs, list(range(1, 60))), NAMES)
    assert_counted(more, count(pairs, list(range(60))), ["background", *NAMES])
    # 59: pixels of background count nowhere. 60: they are missed here, and false alarms of the
    # class that they were taken for.
    background = sum(np.count_nonzero(truth == 0) for truth, _ in pairs)
    pixels = sum(truth.size for truth, _ in pairs)
    assert background > 1000
    assert more["IoU/background"] == 0
    assert "IoU/background" not in fewer
    assert more["pixAcc"] * pixels == pytest.approx(
        fewer["pixAcc"] * (pixels - background), rel=1e-12
    )
    assert more["mIoU"] < fewer["mIoU"]


def test_the_index_orders_of_context_give_the_same_numbers_by_name(
    data_root: Path, tmp_path: Path, scenes: dict
) -> None:
    metrics = []
    for ids, table in (
        ("official", OFFICIAL),
        ("sorted", SORTED),
        ("459", np.array([0, *ID_459], np.uint16)),
    ):
        arguments = [*context_files(tmp_path / ids, data_root, scenes, table), f"dataset.ids={ids}"]
        maps = tmp_path / ids / "maps"
        metrics.append(
            [
                scored(tmp_path / f"{ids}-{n}", maps, *arguments, f"dataset.classes={n}")
                for n in (59, 60)
            ]
        )
    assert metrics[0] == metrics[1] == metrics[2]
    assert list(metrics[0][0]) == list(metrics[1][0])


@pytest.mark.slow
def test_the_wrong_index_order_swaps_the_names_and_nothing_else(
    data_root: Path, tmp_path: Path, scenes: dict
) -> None:
    arguments = context_files(tmp_path, data_root, scenes, OFFICIAL)
    right = scored(tmp_path / "a", tmp_path / "maps", *arguments, "dataset.ids=official")
    swapped = scored(tmp_path / "b", tmp_path / "maps", *arguments, "dataset.ids=sorted")
    # Value v of the file is the v-th official name, and in the sorted order the v-th sorted name.
    renamed = {
        f"IoU/{NAMES[v - 1]}": f"IoU/{NAMES[SORTED.tolist().index(v) - 1]}" for v in range(1, 60)
    }
    assert renamed["IoU/aeroplane"] == "IoU/aeroplane"
    assert renamed["IoU/bicycle"] == "IoU/bag"
    assert {renamed[k]: v for k, v in right.items() if "/" in k} == {
        k: v for k, v in swapped.items() if "/" in k
    }
    assert swapped["mIoU"] == pytest.approx(right["mIoU"], abs=1e-12)
    assert swapped["pixAcc"] == right["pixAcc"]


def test_background_is_missed_where_it_is_no_class(
    data_root: Path, tmp_path: Path, scenes: dict
) -> None:
    arguments = [*context_files(tmp_path, data_root, scenes, OFFICIAL), "dataset.ids=official"]
    first = (tmp_path / "val.txt").read_text().split()[0]
    holed = scenes[first][1].copy()
    holed[7, 5] = 0
    save(tmp_path / f"maps/{first}.png", holed)
    told = done(
        "segeval",
        f"predictions={tmp_path / 'maps'}",
        f"eval.output={tmp_path / '59'}",
        *arguments,
    )
    assert "1 pixels are predicted as void; they count as missed" in told
    assert (
        scored(tmp_path / "60", tmp_path / "maps", *arguments, "dataset.classes=60")[
            "IoU/background"
        ]
        >= 0
    )


# ---------------------------------------------------------------------- Cityscapes


@pytest.fixture(scope="module")
def streets(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of the six real frames as the split val: images, label ids and instance ids."""
    root = tmp_path_factory.mktemp("streets")
    sample = data_root / "cityscapes"
    for image in sorted((sample / "leftImg8bit/train/aachen").glob("*.png")):
        name = image.name.removesuffix("_leftImg8bit.png")
        files = [(image, "leftImg8bit/val/aachen")]
        truths = [
            f"gtFine/train/aachen/{name}_gtFine_{kind}.png" for kind in ("labelIds", "instanceIds")
        ]
        files += [(sample / truth, "gtFine/val/aachen") for truth in truths]
        for file, subfolder in files:
            save(
                root / subfolder / file.name,
                load(file)[300 : 300 + ROAD_CROP[0], 700 : 700 + ROAD_CROP[1]],
            )
    return root


def street_truths(streets: Path) -> list[Path]:
    return sorted((streets / "gtFine/val/aachen").glob("*_labelIds.png"))


def test_label_ids_and_train_ids_of_cityscapes_score_alike_and_as_officially(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    to_train = np.array(
        [next(label.trainId for label in labels if label.id == k) for k in range(34)], np.uint8
    )
    pairs = []
    for number, truth in enumerate(street_truths(streets)):
        name = truth.name.removesuffix("_gtFine_labelIds.png")
        instances = load(truth.with_name(f"{name}_gtFine_instanceIds.png"))
        prediction = corrupted(load(truth), instances, number, number)
        # a caravan has no train id, yet is right for the category
        prediction[np.isin(prediction, (29, 30))] = 5
        pairs.append((save(tmp_path / f"raw/aachen/{name}_gtFine_labelIds.png", prediction), truth))
        save(tmp_path / f"train/{name}_leftImg8bit_pred_labelTrainIds.png", to_train[prediction])
    arguments = ["dataset=cityscapes", f"dataset.root={streets}"]
    raw = scored(tmp_path / "a", tmp_path / "raw", *arguments)
    train = scored(tmp_path / "b", tmp_path / "train", *arguments, "eval.prediction_ids=train")
    assert raw == train
    official = {k: v for k, v in raw.items() if k not in ("pixAcc", "mAcc", "fwIoU")}
    assert official == pytest.approx(judged(pairs, monkeypatch), rel=0, abs=1e-9)
    assert {"iIoU/car", "category_iIoU/vehicle", "category_IoU/flat"} <= raw.keys()
    assert 0.1 < raw["mIoU"] < 0.95


def test_a_predicted_caravan_counts_as_officially(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    for truth in street_truths(streets):
        prediction = load(truth)
        prediction[(prediction == 26) & (np.arange(ROAD_CROP[1]) % 3 == 0)] = 29
        prediction[:20] = 30
        pairs.append((save(tmp_path / "maps" / truth.name, prediction), truth))
    metrics = scored(
        tmp_path / "scores", tmp_path / "maps", "dataset=cityscapes", f"dataset.root={streets}"
    )
    official = {k: v for k, v in metrics.items() if k not in ("pixAcc", "mAcc", "fwIoU")}
    assert official == pytest.approx(judged(pairs, monkeypatch), rel=0, abs=1e-9)
    assert metrics["iIoU/car"] < metrics["category_iIoU/vehicle"] < 1


def test_the_other_ids_are_refused_or_named_by_their_value(streets: Path, tmp_path: Path) -> None:
    for truth in street_truths(streets):
        save(tmp_path / "maps" / truth.name, load(truth))
    arguments = [
        "segeval",
        f"predictions={tmp_path / 'maps'}",
        "dataset=cityscapes",
        f"dataset.root={streets}",
    ]
    words = [street_truths(streets)[0].name, "mask value", "classes 0-18"]
    refused(65, words, *arguments, "eval.prediction_ids=train")
    refused(
        2,
        ["eval.prediction_ids=trian", "Did you mean `train`?"],
        *arguments,
        "eval.prediction_ids=trian",
    )


# ---------------------------------------------------------------- damaged and missing predictions


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of a folder data set in two classes, with perfect predictions in `maps`.

    The name of `a_b` begins with that of `a`.
    """
    rng = np.random.default_rng(0)
    classes = [{"id": 3, "name": "ground"}, {"id": 8, "name": "thing"}, {"id": 255, "ignore": True}]
    for name in ("a", "a_b", "far/a"):
        mask = rng.choice(np.array([3, 8], np.uint8), (6, 9))
        save(tmp_path / f"maps/{name}.png", mask)
        mask[0] = 255
        save(tmp_path / f"data/masks/{name}.png", mask)
        save(tmp_path / f"data/images/{name}.png", np.zeros((6, 9, 3), np.uint8))
    (tmp_path / "data/lists").mkdir()
    (tmp_path / "data/lists/val.txt").write_text("a\na_b\n")
    (tmp_path / "data/classes.json").write_text(json.dumps({"name": "tiny", "classes": classes}))
    return tmp_path / "maps"


def picture_arguments(maps: Path) -> list[str]:
    root = maps.parent / "data"
    return [f"predictions={maps}", "dataset=folder", f"dataset.root={root}", "dataset.lists=lists"]


def test_perfect_maps_are_perfect_in_either_numbering(pictures: Path) -> None:
    (pictures / "far/a.png").unlink()
    output = pictures.parent / "scores"
    assert scored(output, pictures, *picture_arguments(pictures)[1:])["mIoU"] == 1
    for path in pictures.glob("*.png"):
        save(path, (load(path) == 8).astype(np.uint8))
    metrics = scored(
        output, pictures, *picture_arguments(pictures)[1:], "eval.prediction_ids=train"
    )
    assert metrics == {
        "mIoU": 1,
        "pixAcc": 1,
        "mAcc": 1,
        "fwIoU": 1,
        "IoU/ground": 1,
        "IoU/thing": 1,
    }


def test_a_pixel_predicted_as_void_is_missed(pictures: Path) -> None:
    """Of 90 pixels of truth, 42 of ground, one is predicted as 255: 41/42 and 48/48 are left."""
    (pictures / "far/a.png").unlink()
    for path in pictures.glob("*.png"):
        mask = load(pictures.parent / "data/masks" / path.name)
        truth = load(path)
        if path.stem == "a_b":
            y, x = np.argwhere((truth == 3) & (mask != 255))[0]
            truth[y, x] = 255
        save(path, truth)
    found = scored(pictures.parent / "scores", pictures, *picture_arguments(pictures)[1:])
    ground = sum(int((load(path)[1:] == 3).sum()) for path in pictures.glob("*.png"))
    assert found["IoU/thing"] == 1
    assert found["IoU/ground"] == ground / (ground + 1)
    assert found["pixAcc"] == 89 / 90


def test_void_in_predictions_of_camvid_equals_a_count_by_hand(
    data_root: Path, tmp_path: Path
) -> None:
    """CamVid's void is 11 in the files: SegNet's scripts leave it out of the truth only."""
    truth = sorted((data_root / "camvid/valannot").glob("*.png"))
    hit = np.zeros(11)
    true = np.zeros(11)
    said = np.zeros(11)
    for kind in ("val", "valannot"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for path in truth[:2]:
        labels = load(path)
        predicted = np.roll(labels, 9, 1)  # the void ones are now beside things
        save(tmp_path / "maps" / path.name, predicted)
        (tmp_path / "data/valannot" / path.name).symlink_to(path)
        photo = data_root / "camvid/val" / f"{path.stem}.jpg"
        (tmp_path / "data/val" / photo.name).symlink_to(photo)
        for label in range(11):
            hit[label] += ((labels == label) & (predicted == label)).sum()
            true[label] += (labels == label).sum()
            said[label] += ((labels != 11) & (predicted == label)).sum()
    found = scored(
        tmp_path / "scores",
        tmp_path / "maps",
        "dataset=camvid",
        f"dataset.root={tmp_path / 'data'}",
    )
    union = true + said - hit
    assert found["mIoU"] == pytest.approx(np.mean(hit[union > 0] / union[union > 0]), abs=1e-12)
    assert found["pixAcc"] == pytest.approx(hit.sum() / true.sum(), abs=1e-12)


def missing(maps: Path) -> None:
    (maps / "a_b.png").unlink()


def first_missing(maps: Path) -> None:
    """What begins with the name is another image's, an overlay, or lies in another folder."""
    (maps / "a.png").rename(maps / "a_overlay.png")
    (maps / "far/a.png").unlink()


def twice(maps: Path) -> None:
    (maps / "a_b.png").rename(maps / "a_b_one.png")
    (maps / "far/a.png").rename(maps / "far/a_b_two.png")


def twice_below(maps: Path) -> None:
    (maps / "near").mkdir()
    (maps / "a.png").rename(maps / "near/a.png")


def wide(maps: Path) -> None:
    save(maps / "a_b.png", load(maps / "a_b.png").repeat(2, 1))


def turned(maps: Path) -> None:
    save(maps / "a_b.png", load(maps / "a_b.png").T)


def another_id(maps: Path) -> None:
    mask = load(maps / "a_b.png")
    mask[4, 2] = 7
    save(maps / "a_b.png", mask)


def coloured(maps: Path) -> None:
    save(maps / "a_b.png", np.zeros((6, 9, 3), np.uint8))


def cut(maps: Path) -> None:
    (maps / "a_b.png").write_bytes((maps / "a_b.png").read_bytes()[:60])


DAMAGED_MAPS = [
    (missing, ["maps/a_b.png: no prediction for this image", "1 of the 2 images of val"]),
    (first_missing, ["maps/a.png: no prediction for this image", "1 of the 2 images of val"]),
    (twice, ["a_b_one.png", "a_b_two.png", "are both predictions of a_b; keep one"]),
    (twice_below, ["near/a.png", "far/a.png", "are both predictions of a; keep one"]),
    (wide, ["a_b: ", "(6, 18)", "(6, 9)"]),
    (turned, ["a_b: ", "(9, 6)", "(6, 9)"]),
    (another_id, ["maps/a_b.png", "value 7 at (x=2, y=4)", "classes 3, 8"]),
    (coloured, ["maps/a_b.png", "mode RGB", "1 channel"]),
    (cut, ["maps/a_b.png", "truncated or damaged"]),
]


@pytest.mark.parametrize(
    ("spoil", "words"), DAMAGED_MAPS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_damaged_label_map_is_named_and_nothing_is_written(
    pictures: Path, spoil: Any, words: list[str]
) -> None:
    spoil(pictures)
    refused(65, words, "segeval", *picture_arguments(pictures))
    assert not (pictures.parent / "maps-scores").exists()


def test_one_file_never_stands_for_two_images(pictures: Path) -> None:
    assert find_all(pictures, ["a", "far/a"], "val") == {
        "a": pictures / "a.png",
        "far/a": pictures / "far/a.png",
    }
    (pictures / "far/a.png").unlink()
    with pytest.raises(
        DataError, match=r"maps/far/a.png: no prediction for this image; 1 of the 2 images of val"
    ):
        find_all(pictures, ["a", "far/a"], "val")


SPOILT: list[tuple[dict[str, Any], list[str]]] = [
    ({"image_id": 99_999}, ["entry 3", "image 99999 is not in this data set"]),
    ({"image_id": "x"}, ["entry 3", "image x is not in this data set"]),
    ({"image_id": [1]}, ["entry 3", "`image_id` and `category_id` must be integers"]),
    (
        {"category_id": 50},
        ["entry 3", "category 50 is not in this data set", "classes 10, 20, 30, 40"],
    ),
    ({"category_id": [10]}, ["entry 3", "`image_id` and `category_id` must be integers"]),
    ({"score": float("nan")}, ["entry 3", "score nan is not a finite number"]),
    ({"score": float("inf")}, ["entry 3", "score inf is not a finite number"]),
    ({"score": "0.5"}, ["entry 3", "score 0.5 is not a finite number"]),
    ({"score": 10**400}, ["entry 3", "score 1000", "is not a finite number"]),
    ({"score": None}, ["entry 3", "score None is not a finite number"]),
    (
        {"segmentation": [[0, 0, 5, 0, 5, 5]]},
        ["entry 3", "`segmentation` must be a run-length mask"],
    ),
    (
        {"segmentation": {"size": [150, 200], "counts": [0, 30_000]}},
        ["entry 3", "must be a run-length mask"],
    ),
    ({"segmentation": {"size": [150, 200]}}, ["entry 3", "must be a run-length mask"]),
    ({"segmentation": {"counts": "0"}}, ["entry 3", "must be a run-length mask"]),
    ({"segmentation": None}, ["entry 3", "needs `segmentation`, as the other entries have"]),
    (
        {"segmentation": {"size": [4, 5], "counts": "0d0"}},
        ["mask of image", "size [4, 5], the image ["],
    ),
    ({"bbox": [1, 2, 3]}, ["entry 3", "`bbox` must be [x, y, width, height]"]),
    ({"bbox": [1, 2, 3, float("nan")]}, ["entry 3", "four finite numbers"]),
    ({"bbox": [1, 2, 3, "4"]}, ["entry 3", "four finite numbers"]),
    ({"bbox": None}, ["entry 3", "needs `segmentation` and `bbox`, as the other entries have"]),
]


@pytest.mark.parametrize(("change", "words"), SPOILT, ids=[str(i) for i in range(len(SPOILT))])
def test_a_damaged_detection_is_named_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    _, results, file, annotations = coco_files(tmp_path, 2, **FEW, boxes="bbox" in change)
    results[3] |= change
    file.write_text(json.dumps(results))
    refused(
        65,
        ["results.json", *words],
        "segeval",
        f"predictions={file}",
        "dataset=coco_json",
        annotations,
    )
    assert not (tmp_path / "results-scores").exists()


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "segmentation"])
def test_a_detection_that_lacks_something_is_named(tmp_path: Path, key: str) -> None:
    _, results, file, annotations = coco_files(tmp_path, 2, **FEW)
    for entry in results[3 if key != "segmentation" else 0 :]:
        del entry[key]
    file.write_text(json.dumps(results))
    words = (
        ["entry 0", "has neither `segmentation` nor `bbox`"]
        if key == "segmentation"
        else ["entry 3", f"has no `{key}`"]
    )
    refused(65, words, "segeval", f"predictions={file}", "dataset=coco_json", annotations)


@pytest.mark.parametrize("counts", ["é", "\x00", "a b"])
def test_damaged_runs_of_a_mask_are_named(tmp_path: Path, counts: str) -> None:
    _, results, file, annotations = coco_files(tmp_path, 2, **FEW)
    results[3]["segmentation"]["counts"] = counts
    file.write_text(json.dumps(results))
    words = [f"results.json: image {results[3]['image_id']} has a damaged mask"]
    refused(65, words, "segeval", f"predictions={file}", "dataset=coco_json", annotations)


def test_runs_that_fill_more_than_the_image_are_named(tmp_path: Path) -> None:
    _, results, file, annotations = coco_files(tmp_path, 2, **FEW)
    results[3]["segmentation"]["counts"] = run_lengths.encode(np.ones((1, 400, 400), np.uint8))[0][
        "counts"
    ]
    file.write_text(json.dumps(results))
    words = [f"image {results[3]['image_id']} has a damaged mask"]
    refused(65, words, "segeval", f"predictions={file}", "dataset=coco_json", annotations)


@pytest.mark.parametrize("counts", ["", "0", "0d0", "0" * 50])
def test_runs_that_fill_less_than_the_image_count_as_pycocotools_counts_them(
    tmp_path: Path, counts: str
) -> None:
    truth, results, file, annotations = coco_files(tmp_path, 2, **FEW)
    results[3]["segmentation"]["counts"] = counts
    file.write_text(json.dumps(results))
    assert scored(tmp_path / "s", file, "dataset=coco_json", annotations) == judge(
        truth, results, "segm"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["not a readable JSON file"]),
        ("[{", ["not a readable JSON file"]),
        ('{"annotations": []}', ["not a COCO results file, which is a list of"]),
        ("[1]", ["not a COCO results file, which is a list of"]),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    *_, file, annotations = coco_files(tmp_path, 2, **FEW)
    file.write_text(text)
    refused(
        65,
        ["results.json", *words],
        "segeval",
        f"predictions={file}",
        "dataset=coco_json",
        annotations,
    )


def test_maps_where_instances_are_measured_and_the_other_way_round_are_named(
    pictures: Path,
) -> None:
    *_, file, annotations = coco_files(pictures.parent, 2, **FEW)
    words = ["CocoJson takes predictions=FILE.json"]
    refused(2, words, "segeval", f"predictions={pictures}", "dataset=coco_json", annotations)
    words = ["results.json", "Folder takes predictions=FOLDER of label maps"]
    refused(2, words, "segeval", f"predictions={file}", *picture_arguments(pictures)[1:])
