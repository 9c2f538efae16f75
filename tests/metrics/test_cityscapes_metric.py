"""The Cityscapes numbers against cityscapesScripts on real frames, and a street counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapes_judge import corrupted, judged
from PIL import Image

from segtrain.config import parts
from segtrain.errors import DataError, InternalError, UserError
from segtrain.metrics.cityscapes import CATEGORIES, CLASSES, INSTANCES, CityscapesEvaluator
from segtrain.metrics.confusion import SemanticEvaluator
from segtrain.structures.samples import Scene

NAMES = list(CLASSES)
ROAD, PERSON, RIDER, CAR, BUS = (
    CLASSES.index(name) for name in ("road", "person", "rider", "car", "bus")
)
# pixels of an average object
PERSON_SIZE = 3462.4756337644
CAR_SIZE = 12794.0202738185
LABEL_IDS = "_gtFine_labelIds.png"
INSTANCE_IDS = "_gtFine_instanceIds.png"


# The official evaluation as the judge


def as_train_ids(label_ids: np.ndarray, prediction: bool = False) -> np.ndarray:
    """By the official table; predictions of a caravan or a trailer are 254."""
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    table = np.full(256, 255, np.uint8)
    for label in labels:
        if label.id >= 0 and not label.ignoreInEval:
            table[label.id] = label.trainId
    if prediction:
        table[[29, 30]] = 254
    return table[label_ids]


def ours(pairs: list[tuple[Path, Path]]) -> dict[str, float]:
    """Our numbers of the same files, without those that the judge does not report."""
    evaluator = CityscapesEvaluator(NAMES)
    for prediction, truth in pairs:
        labels = as_train_ids(np.array(Image.open(prediction)), prediction=True)
        mask = as_train_ids(np.array(Image.open(truth)))
        instances = np.array(Image.open(str(truth).replace("labelIds", "instanceIds")))
        evaluator.update(prediction.name, torch.from_numpy(labels), Scene(mask, instances))
    result = evaluator.compute()
    return {
        name: value for name, value in result.items() if name not in ("pixAcc", "mAcc", "fwIoU")
    }


def cases(
    data_root: Path, place: Path, count: int, crop: tuple[int, int]
) -> list[tuple[Path, Path]]:
    """Write `count` files of predictions, and return them with the truths they belong to.

    Every way of going wrong comes in turn; kind 0 is perfect.
    """
    frames = sorted(
        (data_root / "cityscapes" / "gtFine" / "train" / "aachen").glob(f"*{LABEL_IDS}")
    )
    assert len(frames) == 6
    pairs = []
    for number in range(count):
        frame = frames[number % 6]
        name = frame.name.removesuffix(LABEL_IDS)
        maps = [
            np.array(Image.open(frame.with_name(name + end))) for end in (LABEL_IDS, INSTANCE_IDS)
        ]
        height, width = maps[0].shape
        y = (height - crop[0]) // 2
        x = (width - crop[1]) // 2
        labels, instances = (m[y : y + crop[0], x : x + crop[1]] for m in maps)
        prediction = place / f"{number:02d}_prediction.png"
        Image.fromarray(corrupted(labels, instances, (number + number // 6) % 6, number)).save(
            prediction
        )
        Image.fromarray(labels).save(place / f"{number:02d}{LABEL_IDS}")
        Image.fromarray(instances).save(place / f"{number:02d}{INSTANCE_IDS}")
        pairs.append((prediction, place / f"{number:02d}{LABEL_IDS}"))
    return pairs


def test_eight_wrong_predictions_of_real_crops_get_the_official_numbers(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = cases(data_root, tmp_path, 8, (384, 768))
    expected = judged(pairs, monkeypatch)
    found = ours(pairs)
    assert {
        "iIoU/car",
        "iIoU/person",
        "category_iIoU/human",
        "category_IoU/sky",
        "category_iIoU",
    } <= expected.keys()
    assert found == pytest.approx(expected, rel=0, abs=1e-9)


def test_one_image_alone_gets_the_official_numbers_and_no_key_where_those_are_nan(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = cases(data_root, tmp_path, 8, (128, 192))
    for pair in pairs:
        assert ours([pair]) == pytest.approx(judged([pair], monkeypatch), rel=0, abs=1e-9)
    assert {v for k, v in ours(pairs[:1]).items() if "iIoU" in k} == {1.0}  # kind 0: perfect
    # other classes occur in other images
    assert len({frozenset(ours([pair])) for pair in pairs}) > 1


def test_random_scenes_with_every_label_and_groups_get_the_official_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    for number in range(12):
        rng = np.random.default_rng(number)
        labels, instances = (
            rng.integers(0, end, (8, 10)).repeat(6, 0).repeat(6, 1) for end in (34, 3)
        )
        instances = np.where((labels >= 24) & (instances < 2), labels * 1000 + instances, labels)
        prediction = np.where(
            rng.random(labels.shape) < 0.6, labels, rng.integers(0, 34, labels.shape)
        )
        files = [
            tmp_path / f"{number}{end}" for end in ("_prediction.png", LABEL_IDS, INSTANCE_IDS)
        ]
        for file, values, kind in zip(
            files, (prediction, labels, instances), (np.uint8, np.uint8, np.uint16), strict=True
        ):
            Image.fromarray(values.astype(kind)).save(file)
        pairs.append((files[0], files[1]))
    expected = judged(pairs, monkeypatch)
    assert len(expected) == 4 + 19 + 7 + 8 + 2
    assert ours(pairs) == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.slow
def test_fifty_wrong_predictions_of_whole_frames_get_the_official_numbers(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = cases(data_root, tmp_path, 50, (1024, 2048))
    for part in [pairs[i : i + 10] for i in range(0, 50, 10)] + [pairs]:
        assert ours(part) == pytest.approx(judged(part, monkeypatch), rel=0, abs=1e-9)


# By hand

# Two persons of 4 and 2 pixels, two cars of 2 pixels, a group of persons of 2, a trailer of 2 (not
# evaluated), 8 of road.
INSTANCE_MAP = np.array(
    [
        [24000, 24000, 24001, 24001, 7, 7, 7, 7, 7, 7, 7],
        [24000, 24000, 26000, 26000, 24, 24, 30000, 30000, 26001, 26001, 7],
    ],
    np.uint16,
)
MASK = np.array(
    [[11, 11, 11, 11, 0, 0, 0, 0, 0, 0, 0], [11, 11, 13, 13, 11, 11, 255, 255, 13, 13, 0]], np.uint8
)
# The first person half found and half rider, the second half no class; a road pixel person, one
# car, one caravan; the first car half found, half bus; the second half caravan, half road; the
# trailer is called a car.
PREDICTION = np.array(
    [[11, 11, 11, 255, 11, 13, 254, 0, 0, 0, 0], [12, 12, 13, 15, 11, 11, 13, 13, 254, 0, 0]],
    np.uint8,
)


def street(name: str = "street") -> CityscapesEvaluator:
    evaluator = CityscapesEvaluator(NAMES)
    evaluator.update(name, torch.from_numpy(PREDICTION), Scene(MASK, INSTANCE_MAP))
    return evaluator


def test_every_number_of_a_street_is_as_on_paper() -> None:
    result = street().compute()
    assert result["IoU/person"] == pytest.approx(5 / 9)  # 8 true, 5 found, 1 road pixel wrong
    # 4 true, 1 found, 1 wrong; the trailer's pixels do not count
    assert result["IoU/car"] == pytest.approx(1 / 5)
    assert result["IoU/road"] == pytest.approx(5 / 9)  # 8 true, 5 found, 1 wrong
    assert result["IoU/rider"] == result["IoU/bus"] == 0.0
    assert result["mIoU"] == pytest.approx((5 / 9 + 1 / 5 + 5 / 9) / 5)
    assert result["category_IoU/flat"] == pytest.approx(5 / 9)
    assert result["category_IoU/human"] == pytest.approx(7 / 9)
    # a caravan is a miss, and no vehicle on the road
    assert result["category_IoU/vehicle"] == pytest.approx(2 / 5)
    assert result["category_IoU"] == pytest.approx((5 / 9 + 7 / 9 + 2 / 5) / 3)
    # found: 2/4 of one person, 1/2 of another; false: 1 pixel of road. Group pixels are neither.
    assert result["iIoU/person"] == pytest.approx(PERSON_SIZE * (0.5 + 0.5) / (2 * PERSON_SIZE + 1))
    assert result["iIoU/car"] == pytest.approx(CAR_SIZE * 0.5 / (2 * CAR_SIZE + 1))
    assert result["iIoU/rider"] == result["iIoU/bus"] == 0.0  # nowhere true, but predicted
    assert result["iIoU"] == pytest.approx((result["iIoU/person"] + result["iIoU/car"]) / 4)
    # by category a rider is a human and a caravan is a vehicle, on a car and on the road
    assert result["category_iIoU/human"] == pytest.approx(
        PERSON_SIZE * (1 + 0.5) / (2 * PERSON_SIZE + 1)
    )
    assert result["category_iIoU/vehicle"] == pytest.approx(
        CAR_SIZE * (1 + 0.5) / (2 * CAR_SIZE + 2)
    )
    assert result["pixAcc"] == pytest.approx((5 + 1 + 5) / 20)
    never = ("train", "truck", "motorcycle", "bicycle")
    assert not [name for name in result for word in never if name.endswith(word)]


def test_the_street_is_judged_as_on_paper_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = np.full(256, 0, np.uint8)
    raw[[0, 11, 12, 13, 15, 254]] = 7, 24, 25, 26, 28, 29
    truth = np.where(INSTANCE_MAP >= 1000, INSTANCE_MAP // 1000, INSTANCE_MAP).astype(np.uint8)
    for name, values in (
        ("p.png", raw[PREDICTION]),
        (f"t{LABEL_IDS}", truth),
        (f"t{INSTANCE_IDS}", INSTANCE_MAP),
    ):
        Image.fromarray(values).save(tmp_path / name)
    expected = judged([(tmp_path / "p.png", tmp_path / f"t{LABEL_IDS}")], monkeypatch)
    found = street().compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_table_shows_classes_then_categories() -> None:
    lines = street().table().splitlines()
    assert lines[0].split() == ["class", "IoU", "%", "iIoU", "%", "Acc", "%", "pixels"]
    assert lines[2 + PERSON].split() == ["person", "55.56", "49.99", "62.50", "8"]
    assert lines[2 + ROAD].split() == ["road", "55.56", "-", "62.50", "8"]
    assert lines[22].split() == ["mean", "26.22", "18.75", "50.00", "20"]
    assert lines[24].split() == ["category", "IoU", "%", "iIoU", "%"]
    assert lines[31].split() == ["human", "77.78", "74.99"]
    assert lines[34].split() == ["mean", "57.78", "74.99"]
    assert lines[35] == "pixel accuracy 55.00 %, frequency-weighted IoU 48.44 %"


def test_constants_are_those_of_the_official_scripts() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    evaluated = sorted(
        (label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId
    )
    assert tuple(label.name for label in evaluated) == CLASSES
    assert {name: kind for kind, members in CATEGORIES.items() for name in members} == {
        label.name: label.category for label in evaluated
    }
    assert {name: thing.label_id for name, thing in INSTANCES.items()} == {
        label.name: label.id for label in evaluated if label.hasInstances
    }
    judge = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    assert {
        name: thing.size for name, thing in INSTANCES.items()
    }.items() <= judge.args.avgClassSize.items()


# As an evaluator


def made(seed: int) -> tuple[torch.Tensor, Scene]:
    """A random prediction and scene, one object in each square of 8 pixels."""
    rng = np.random.default_rng(seed)
    label_ids = (
        rng.choice([7, 11, 24, 25, 26, 27, 28, 31, 32, 33], (4, 5)).repeat(8, 0).repeat(8, 1)
    )
    numbers = np.arange(20).reshape(4, 5).repeat(8, 0).repeat(8, 1)
    mask = as_train_ids(label_ids)
    prediction = np.where(
        rng.random(mask.shape) < 0.3, rng.choice([*range(19), 254, 255], mask.shape), mask
    )
    instances = np.where(label_ids >= 24, label_ids * 1000 + numbers, label_ids)
    return torch.from_numpy(prediction.astype(np.uint8)), Scene(mask, instances)


def scored(ids: list[int]) -> CityscapesEvaluator:
    evaluator = CityscapesEvaluator(NAMES)
    for i in ids:
        evaluator.update(f"image{i}", *made(i))
    return evaluator


@pytest.mark.row("R11")
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_in_any_order_give_the_same_bits(ranks: int) -> None:
    alone = scored(list(range(11)))
    merged = scored([40])
    merged.merge(
        [scored(list(range(rank, 11, ranks))[::-1]).state() for rank in range(ranks)][::-1]
    )
    assert merged.compute() == alone.compute()
    assert merged.table() == alone.table()
    assert merged.worst(11) == alone.worst(11)
    with pytest.raises(InternalError, match="image1: evaluated by two processes"):
        merged.merge([scored([0, 1]).state(), scored([1]).state()])


def test_a_perfect_prediction_is_1_everywhere_and_a_random_one_is_not() -> None:
    perfect = CityscapesEvaluator(NAMES)
    random = CityscapesEvaluator(NAMES)
    for i in range(3):
        _, scene = made(i)
        perfect.update(str(i), torch.from_numpy(scene.mask), scene)
        random.update(
            str(i), torch.randint(0, 19, scene.mask.shape, generator=torch.manual_seed(i)), scene
        )
    assert list(perfect.compute().values()) == pytest.approx([1.0] * len(perfect.compute()))
    assert len([key for key in perfect.compute() if key.startswith("iIoU/")]) == 8
    assert all(value < 0.5 for value in random.compute().values())


def test_without_instances_iiou_is_absent_and_all_else_is_the_same() -> None:
    evaluator = CityscapesEvaluator(NAMES)
    mixed = scored([0])
    for i in range(3):
        prediction, scene = made(i)
        evaluator.update(f"image{i}", prediction, scene.mask)
        if i:
            mixed.update(f"image{i}", prediction, scene.mask)
    full = scored([0, 1, 2]).compute()
    assert evaluator.compute() == {k: v for k, v in full.items() if "iIoU" not in k}
    # iIoU of some of the images would be compared with all false positives
    assert mixed.compute() == evaluator.compute()
    assert "category" in evaluator.table()
    assert set(full) <= set(evaluator.names())
    assert {k for k in full if "iIoU" in k} > {
        "iIoU",
        "category_iIoU",
    }


def test_the_plain_evaluator_reads_the_same_scene_where_every_pixel_has_a_class() -> None:
    _, scene = made(3)
    prediction = torch.from_numpy(np.roll(scene.mask, 3, 1))
    plain = SemanticEvaluator(NAMES)
    evaluator = CityscapesEvaluator(NAMES)
    for each in (plain, evaluator):
        each.update("a", prediction, scene)
    assert plain.compute().items() <= evaluator.compute().items()
    assert evaluator.pictures()["confusion"].shape == plain.pictures()["confusion"].shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type_of_prediction_and_instances_gives_the_same_numbers(
    dtype: torch.dtype,
) -> None:
    for kind in (np.uint16, np.int32, np.int64):
        evaluator = CityscapesEvaluator(NAMES)
        scene = Scene(MASK, INSTANCE_MAP.astype(kind))
        evaluator.update("street", torch.from_numpy(PREDICTION).to(dtype), scene)
        assert evaluator.compute() == street().compute()


def test_other_classes_than_cityscapes_are_refused_before_anything_is_counted() -> None:
    node = {"_target_": "segtrain.metrics.cityscapes.CityscapesEvaluator"}
    assert parts.evaluator(node, NAMES).protocol.endswith(
        "category IoU and iIoU as cityscapesScripts defines them"
    )
    with pytest.raises(
        UserError, match="its 19 classes in the order of their train ids, not with 3 and `cat`"
    ):
        parts.evaluator(node, ["road", "cat", "dog"])
    with pytest.raises(UserError, match="not with 19; other sets take metric=semantic"):
        CityscapesEvaluator(NAMES[::-1])


def test_errors_name_the_image_and_the_value() -> None:
    evaluator = CityscapesEvaluator(NAMES)
    prediction = torch.from_numpy(PREDICTION)
    with pytest.raises(DataError, match="a: the instance map holds 34000, but instances are 1000"):
        evaluator.update("a", prediction, Scene(MASK, np.full(MASK.shape, 34_000)))
    with pytest.raises(
        DataError, match=r"b: the prediction has shape \(2, 11\), the instance map \(2, 3\)"
    ):
        evaluator.update("b", prediction, Scene(MASK, INSTANCE_MAP[:, :3]))
    with pytest.raises(
        DataError, match="c: the prediction holds 19, but classes are 0-18 and 254-255 are no class"
    ):
        evaluator.update("c", torch.full(MASK.shape, 19), Scene(MASK, INSTANCE_MAP))
    with pytest.raises(InternalError, match="street: evaluated twice"):
        street().update("street", prediction, Scene(MASK, INSTANCE_MAP))


def test_predictions_of_no_evaluated_class_stand_in_no_column_of_the_counts() -> None:
    evaluator = CityscapesEvaluator(list(CLASSES))
    evaluator.update("x", torch.tensor([[0, 254, 255]]), torch.tensor([[0, 0, 0]]))
    counts = np.array(evaluator.counts()["confusion"]["counts"])
    assert counts.shape == (19, 19)
    assert counts.sum() == counts[0, 0] == 1
