"""COCO's numbers: pycocotools is the judge, the difference allowed is none; small cases by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_judge import CLASSES, TWELVE, blob, judge, made

from segtrain.errors import DataError, InternalError, NothingToMeasure
from segtrain.metrics.coco import CocoEvaluator, ProposalEvaluator
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import Scene

# The judge, and files as objects


def truths(data: dict) -> dict[str, Segments]:
    """The annotations of every image of a COCO file."""
    train = {raw: index for index, raw in enumerate(sorted(c["id"] for c in data["categories"]))}
    found = {}
    for image in data["images"]:
        size = (image["height"], image["width"])
        own = [entry for entry in data["annotations"] if entry["image_id"] == image["id"]]
        found[str(image["id"])] = Segments(
            size=size,
            labels=np.array([train[entry["category_id"]] for entry in own], np.int64),
            boxes=np.array([entry["bbox"] for entry in own], np.float64).reshape(-1, 4),
            masks=[mask(entry["segmentation"], size) for entry in own],
            areas=np.array([entry["area"] for entry in own], np.float64),
            crowd=np.array([entry["iscrowd"] for entry in own], bool),
        )
    return found


def mask(segmentation: Any, size: tuple[int, int]) -> dict:
    if isinstance(segmentation, list):
        return run_lengths.from_polygons(segmentation, size)
    counts = segmentation["counts"]
    return segmentation if isinstance(counts, str) else run_lengths.from_counts(counts, size)


def predictions(data: dict, results: list[dict]) -> dict[str, Segments]:
    """The entries of a results file for every image, as pycocotools' loadRes reads them."""
    train = {raw: index for index, raw in enumerate(sorted(c["id"] for c in data["categories"]))}
    masked, boxed = (any(key in entry for entry in results) for key in ("segmentation", "bbox"))
    found = {}
    for image in data["images"]:
        own = [entry for entry in results if entry["image_id"] == image["id"]]
        masks = [entry["segmentation"] for entry in own] if masked else None
        boxes = np.array(
            [entry["bbox"] for entry in own] if boxed else run_lengths.boxes(masks or []),
            np.float64,
        )
        boxes = boxes.reshape(-1, 4)
        found[str(image["id"])] = Segments(
            size=(image["height"], image["width"]),
            labels=np.array([train[entry["category_id"]] for entry in own], np.int64),
            boxes=boxes,
            masks=masks,
            areas=boxes[:, 2] * boxes[:, 3]
            if boxed
            else run_lengths.areas(masks or []).astype(np.float64),
            scores=np.array([entry["score"] for entry in own], np.float64),
        )
    return found


def scored(evaluator: Any, data: dict, results: list[dict]) -> Any:
    real = truths(data)
    found = predictions(data, results)
    order = list(real)
    random.Random(7).shuffle(order)
    for name in order:
        evaluator.update(name, found[name], real[name])
    return evaluator


# Made sets


def without(results: list[dict], key: str) -> list[dict]:
    return [{k: v for k, v in entry.items() if k != key} for entry in results]


# Exactly pycocotools


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_coco_s_own_sample_gives_the_published_numbers(kind: str, data_root: Path) -> None:
    folder = data_root / "coco_eval_val2014"
    data = json.loads((folder / "annotations/instances_val2014_100.json").read_text())
    results = json.loads(
        (folder / f"results/instances_val2014_fake{kind}100_results.json").read_text()
    )
    names = [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]
    numbers = scored(CocoEvaluator(names), data, results).compute()
    assert numbers == judge(data, results, kind)
    printed = (
        (folder / "results/val2014_fake_eval_res.txt")
        .read_text()
        .split(f"type={kind}\n")[1]
        .split("type=")[0]
    )
    published = [line.split("=")[-1].strip() for line in printed.splitlines() if "@[" in line]
    assert len(published) == 12
    assert [f"{numbers[f'{kind}/{name}']:.3f}" for name in TWELVE] == published


@pytest.mark.parametrize("seed", range(6))
def test_masks_of_made_sets_score_exactly_as_pycocotools_says(seed: int) -> None:
    data, results = made(seed, decimals=seed % 3)
    numbers = scored(CocoEvaluator(CLASSES), data, results).compute()
    assert numbers == judge(data, results, "segm")
    assert 0.1 < numbers["segm/AP"] < 0.9
    assert {"segm/APs", "segm/APl"} <= numbers.keys()
    assert "segm/AP/dog" not in numbers  # predicted, but nowhere true


@pytest.mark.parametrize("seed", range(3))
def test_boxes_alone_score_exactly_as_pycocotools_says(seed: int) -> None:
    data, results = made(seed, boxes=True)
    results = without(results, "segmentation")
    assert scored(CocoEvaluator(CLASSES), data, results).compute() == judge(data, results, "bbox")


def test_a_file_of_masks_with_boxes_gives_both_and_sizes_masks_as_pycocotools_does() -> None:
    data, results = made(3, boxes=True)
    numbers = scored(CocoEvaluator(CLASSES), data, results).compute()
    assert numbers == judge(data, results, "segm") | judge(data, results, "bbox")
    alone = judge(data, without(results, "bbox"), "segm")
    assert alone["segm/AP"] == numbers["segm/AP"]
    assert alone["segm/APs"] != numbers["segm/APs"]


def test_boxes_of_a_file_of_masks_count_when_asked_for() -> None:
    data, results = made(4)
    assert not any(
        name.startswith("bbox") for name in scored(CocoEvaluator(CLASSES), data, results).compute()
    )
    numbers = scored(CocoEvaluator(CLASSES, kinds=["bbox"]), data, results).compute()
    assert numbers == judge(data, results, "bbox")


def test_more_than_a_hundred_detections_of_a_class_are_cut_as_pycocotools_cuts() -> None:
    data, results = made(5, images=3, guesses=320, decimals=2)
    most = max(
        np.unique([f"{e['image_id']} {e['category_id']}" for e in results], return_counts=True)[1]
    )
    assert most > 100
    assert scored(CocoEvaluator(CLASSES), data, results).compute() == judge(data, results, "segm")


def test_without_detections_everything_is_zero_in_both_kinds() -> None:
    data, _ = made(0)
    numbers = scored(CocoEvaluator(CLASSES), data, []).compute()
    assert numbers == judge(data, [], "segm") | judge(data, [], "bbox")
    assert set(numbers.values()) == {0.0}
    assert "segm/AP/ant" in numbers


def test_without_objects_there_are_no_numbers() -> None:
    data, results = made(0)
    data["annotations"] = []
    evaluator = scored(CocoEvaluator(CLASSES), data, results)
    assert evaluator.compute() == judge(data, results, "segm") == {}
    assert evaluator.worst(5) == []
    assert "ant" in evaluator.table()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    data, results = made(1, images=4)
    scored(CocoEvaluator(CLASSES), data, results).compute()
    scored(ProposalEvaluator(CLASSES), data, results).compute()
    assert capfd.readouterr() == ("", "")


# By hand


def rectangle(size: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
    area = np.zeros(size, bool)
    area[top : top + height, left : left + width] = True
    return area


def segments(
    masks: list[np.ndarray], labels: list[int], scores: list[float] | None = None
) -> Segments:
    codes = run_lengths.encode(np.array(masks))
    return Segments(
        size=(30, 30),
        labels=np.array(labels, np.int64),
        boxes=run_lengths.boxes(codes),
        masks=codes,
        areas=run_lengths.areas(codes).astype(np.float64),
        crowd=np.zeros(len(labels), bool),
        scores=None if scores is None else np.array(scores),
    )


def one_hit() -> tuple[Segments, Segments]:
    """Two ants of 10 x 8; the one detection covers 6 of 8 columns of the first and 2 beside it."""
    ants = [rectangle((30, 30), 0, 0, 10, 8), rectangle((30, 30), 20, 20, 10, 8)]
    return segments([rectangle((30, 30), 0, 2, 10, 8)], [0], [0.9]), segments(ants, [0, 0])


def test_two_objects_and_one_hit_at_iou_six_tenths_are_as_on_paper() -> None:
    # Intersection 10 * 6 = 60, union 80 + 80 - 60 = 100: IoU 0.6, a hit at 0.50, 0.55, 0.60, a miss
    # at the other seven. Where it hits, precision is 1 up to recall 1/2: 51 of the 101 points 0.00,
    # 0.01 ... 0.50. 80 pixels are "small".
    evaluator = CocoEvaluator(["ant", "bee"])
    evaluator.update("a", *one_hit())
    ap = 3 / 10 * 51 / 101
    recall = 3 / 10 * 1 / 2
    assert evaluator.compute() == {
        "segm/AP": pytest.approx(ap, abs=1e-12),
        "segm/AP50": pytest.approx(51 / 101, abs=1e-12),
        "segm/AP75": 0,
        "segm/APs": pytest.approx(ap, abs=1e-12),
        "segm/AR@1": pytest.approx(recall, abs=1e-12),
        "segm/AR@10": pytest.approx(recall, abs=1e-12),
        "segm/AR@100": pytest.approx(recall, abs=1e-12),
        "segm/ARs": pytest.approx(recall, abs=1e-12),
        "segm/AP/ant": pytest.approx(ap, abs=1e-12),
    }
    assert evaluator.worst(1) == [("a", pytest.approx(ap, abs=1e-12))]


def test_a_crowd_region_neither_counts_as_object_nor_makes_a_detection_false() -> None:
    ant = rectangle((30, 30), 0, 0, 10, 8)
    herd = rectangle((30, 30), 15, 0, 10, 30)
    truth = segments([ant, herd], [0, 0])
    truth.crowd[1] = True
    inside = rectangle((30, 30), 16, 3, 5, 5)  # all of it in the herd
    evaluator = CocoEvaluator(["ant"])
    evaluator.update("a", segments([inside, ant], [0, 0], [0.9, 0.8]), truth)
    numbers = evaluator.compute()
    assert numbers["segm/AP"] == pytest.approx(1, abs=1e-12)
    assert numbers["segm/AR@100"] == 1
    assert numbers["segm/AR@1"] == 0  # the one detection of that image is in the herd


@pytest.mark.parametrize(
    ("hit", "miss", "share"),
    [("139", "1000", 1.0), ("1000", "139", 0.5), ("b139", "b1000", 0.5), ("1000", "b", 1.0)],
)
def test_equal_scores_rank_by_image_id_and_ids_of_digits_count_as_numbers(
    hit: str, miss: str, share: float
) -> None:
    # Two ants, one found, one false detection of equal score elsewhere: precision is 1 where the
    # hit ranks first, else 1/2.
    ant = rectangle((30, 30), 0, 0, 10, 8)
    other = rectangle((30, 30), 15, 15, 10, 8)
    for order in ((hit, miss), (miss, hit)):
        evaluator = CocoEvaluator(["ant"])
        for name in order:
            evaluator.update(
                name, segments([ant if name == hit else other], [0], [0.5]), segments([ant], [0])
            )
        assert evaluator.compute()["segm/AP"] == pytest.approx(share * 51 / 101, abs=1e-12)


def test_proposals_hit_whatever_class_they_name() -> None:
    found, truth = one_hit()
    found.labels[0] = 1
    evaluator = ProposalEvaluator(["ant", "bee"])
    evaluator.update("a", found, truth)
    recall = pytest.approx(3 / 10 * 1 / 2, abs=1e-12)
    assert evaluator.compute() == {
        f"segm/{name}": recall for name in ("AR@10", "AR@100", "AR@1000", "ARs")
    }
    assert evaluator.worst(3) == [("a", recall)]
    assert evaluator.image_scores()["a"]["AR@1000"] == recall
    assert evaluator.table().splitlines()[1].split() == [
        "segm",
        "15.0",
        "15.0",
        "15.0",
        "15.0",
        "-",
        "-",
    ]


# Proposals


@pytest.mark.parametrize(
    ("images", "guesses"),
    [(3, 1100), pytest.param(60, 1000, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_proposals_recall_what_pycocotools_says_without_classes(images: int, guesses: int) -> None:
    data, results = made(8, images=images, guesses=guesses, decimals=2)
    numbers = scored(ProposalEvaluator(CLASSES), data, results).compute()
    expected = judge(data, results, "segm", class_agnostic=True)
    assert numbers.keys() == expected.keys()
    assert len(numbers) == 6
    assert max(abs(numbers[name] - expected[name]) for name in expected) < 1e-12
    assert numbers["segm/AR@10"] < numbers["segm/AR@100"] < numbers["segm/AR@1000"]


@pytest.mark.parametrize("seed", range(3))
def test_proposals_of_equal_scores_and_other_classes_are_taken_in_pycocotools_order(
    seed: int,
) -> None:
    data, results = made(seed, images=6, guesses=60, decimals=0, boxes=True)
    numbers = scored(ProposalEvaluator(CLASSES), data, results).compute()
    assert numbers == judge(data, results, "segm", class_agnostic=True)
    boxes = without(results, "segmentation")
    numbers = scored(ProposalEvaluator(CLASSES, kind="bbox"), data, boxes).compute()
    assert numbers == judge(data, boxes, "bbox", class_agnostic=True)


# The evaluator's duties


@pytest.mark.row("R11")
@pytest.mark.parametrize("make", [CocoEvaluator, ProposalEvaluator])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_of_any_size_in_any_order_give_the_identical_answers(make: Any, shards: int) -> None:
    data, results = made(2, boxes=True)
    real = truths(data)
    found = predictions(data, results)
    whole = scored(make(CLASSES), data, results)
    for seed in range(3):
        names = list(real)
        random.Random(seed).shuffle(names)
        states = []
        for part in (
            (names[:1], names[1:4], names[4:])[-shards:]
            if shards == 3
            else (names[i::shards] for i in range(shards))
        ):
            evaluator = make(CLASSES)
            for name in part:
                evaluator.update(name, found[name], real[name])
            states.append(json.loads(json.dumps(evaluator.state())))  # plain types
        merged = make(CLASSES)
        merged.merge(states)
        assert list(merged.compute().items()) == list(whole.compute().items())
        assert merged.worst(20) == whole.worst(20)
        assert merged.table() == whole.table()


def test_numbers_come_under_the_promised_names_in_their_order() -> None:
    data, results = made(2, boxes=True)
    evaluator = scored(CocoEvaluator(CLASSES), data, results)
    promised = evaluator.names()
    given = list(evaluator.compute())
    assert promised[:12] == [f"segm/{name}" for name in TWELVE]
    assert promised[12:24] == [f"bbox/{name}" for name in TWELVE]
    assert promised[24:28] == [f"segm/AP/{name}" for name in CLASSES]
    assert len(promised) == 32
    assert given == [name for name in promised if not name.endswith("/dog")]
    assert CocoEvaluator(CLASSES, kinds=["bbox"]).names()[:12] == promised[12:24]
    assert evaluator.pictures() == {}
    assert "pycocotools" in evaluator.protocol


def test_the_table_shows_percents_per_kind_and_per_class() -> None:
    evaluator = CocoEvaluator(["ant", "bee"])
    evaluator.update("a", *one_hit())
    lines = [line.split() for line in evaluator.table().splitlines()]
    assert lines[0] == TWELVE
    assert lines[1] == [
        "segm",
        "15.1",
        "50.5",
        "0.0",
        "15.1",
        "-",
        "-",
        "15.0",
        "15.0",
        "15.0",
        "15.0",
        "-",
        "-",
    ]
    assert lines[3:] == [
        ["class", "segm", "AP", "objects"],
        lines[4],
        ["ant", "15.1", "2"],
        ["bee", "-", "0"],
    ]


def test_the_worst_images_are_those_of_lowest_own_ap() -> None:
    data, results = made(6)
    evaluator = scored(CocoEvaluator(CLASSES), data, results)
    expected = []
    for image in data["images"]:
        own = [entry for entry in results if entry["image_id"] == image["id"]]
        real = [entry for entry in data["annotations"] if entry["image_id"] == image["id"]]
        score = judge(data | {"images": [image], "annotations": real}, own, "segm").get("segm/AP")
        if score is not None:
            expected.append((str(image["id"]), score))
    assert 4 < len(expected) < len(data["images"])
    assert evaluator.worst(100) == sorted(expected, key=lambda pair: (pair[1], pair[0]))
    assert evaluator.worst(2) == evaluator.worst(100)[:2]
    own = evaluator.image_scores()
    assert list(map(int, own)) == sorted(image["id"] for image in data["images"])
    assert {name: scores["AP"] for name, scores in own.items() if scores["AP"] is not None} == dict(
        expected
    )
    assert {name: scores["objects"] for name, scores in own.items()} == {
        str(image["id"]): sum(
            entry["image_id"] == image["id"] and not entry["iscrowd"]
            for entry in data["annotations"]
        )
        for image in data["images"]
    }


def test_a_later_image_changes_an_earlier_answer() -> None:
    evaluator = CocoEvaluator(["ant"])
    found, truth = one_hit()
    evaluator.update("a", found, truth)
    before = evaluator.compute()
    evaluator.update("b", found, truth)
    after = evaluator.compute()
    other = CocoEvaluator(["ant"])
    other.merge([evaluator.state()])
    assert before["segm/AR@100"] == after["segm/AR@100"]
    assert other.compute() == after
    other.merge([])
    with pytest.raises(NothingToMeasure, match="no image was evaluated"):
        other.compute()


def dense(seed: int) -> tuple[Instances, Instances]:
    """A prediction and a target as a model and a loader give them."""
    rng = np.random.default_rng(seed)
    masks = np.array(
        [blob(rng, (120, 140), rng.uniform(0, 120, 2), rng.uniform(4, 70, 2)) for _ in range(8)]
    )
    corners = rng.uniform(0, 100, (8, 2))
    boxes = torch.tensor(
        np.concatenate([corners, corners + rng.uniform(5, 40, (8, 2))], 1), dtype=torch.float32
    )
    labels = torch.tensor(rng.integers(0, 3, 8))
    target = Instances(
        boxes, labels, torch.from_numpy(masks), crowd=torch.tensor([False] * 7 + [True])
    )
    moved = boxes + torch.tensor(rng.uniform(-3, 3, (8, 4)), dtype=torch.float32)
    shifted = torch.from_numpy(np.roll(masks, 2, axis=2))
    return Instances(
        moved, labels, shifted, scores=torch.tensor(rng.random(8), dtype=torch.float32)
    ), target


def exact(objects: Instances, boxes_only: bool) -> Segments:
    corners = objects.boxes.double().numpy()
    codes = run_lengths.encode(objects.masks.numpy())
    extent = corners[:, 2:] - corners[:, :2]
    areas = run_lengths.areas(codes).astype(np.float64)
    if boxes_only and objects.scores is not None:
        areas = extent[:, 0] * extent[:, 1]
    return Segments(
        size=(120, 140),
        labels=objects.labels.numpy(),
        boxes=np.concatenate([corners[:, :2], extent], 1),
        masks=None if boxes_only else codes,
        areas=areas,
        crowd=None if objects.crowd is None else objects.crowd.numpy(),
        scores=None if objects.scores is None else objects.scores.double().numpy(),
    )


def test_dense_instances_count_as_a_file_of_masks_and_a_file_of_boxes() -> None:
    ours = CocoEvaluator(CLASSES)
    masks = CocoEvaluator(CLASSES, ["segm"])
    boxes = CocoEvaluator(CLASSES)
    proposals = ProposalEvaluator(CLASSES)
    coded = ProposalEvaluator(CLASSES)
    for seed in range(5):
        prediction, target = dense(seed)
        for evaluator in (ours, proposals):
            evaluator.update(str(seed), prediction, target)
        for evaluator in (masks, coded):
            evaluator.update(str(seed), exact(prediction, False), exact(target, False))
        boxes.update(str(seed), exact(prediction, True), exact(target, True))
    assert ours.compute() == masks.compute() | boxes.compute()
    assert 0 < ours.compute()["bbox/APm"] < 1
    assert 0 < ours.compute()["segm/APl"] < 1
    assert proposals.compute() == coded.compute()


def test_no_dense_instances_at_all_is_a_recall_of_zero() -> None:
    _, target = dense(0)
    none = Instances(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 120, 140, dtype=torch.bool),
    )
    evaluator = CocoEvaluator(CLASSES)
    evaluator.update(
        "a", Instances(none.boxes, none.labels, none.masks, scores=torch.zeros(0)), target
    )
    evaluator.update(
        "b", Instances(none.boxes, none.labels, none.masks, scores=torch.zeros(0)), none
    )
    assert evaluator.compute()["segm/AP"] == evaluator.compute()["bbox/AR@100"] == 0
    assert evaluator.worst(5) == [("a", 0.0)]


# Mistakes


def changed(objects: Segments, **values: Any) -> Segments:
    return Segments(**{**vars(objects), **values})


WRONG = [
    ({"labels": np.array([2])}, {}, "the prediction holds label 2, but classes are 0-1"),
    ({"labels": np.array([-1])}, {}, "the prediction holds label -1"),
    ({}, {"labels": np.array([0, 7])}, "the truth holds label 7"),
    ({"size": (20, 30)}, {}, r"mask of \[30, 30\] in an image of \[20, 30\]"),
    (
        {"size": (20, 30), "masks": None},
        {},
        r"the prediction has size \[20, 30\], the truth \[30, 30\]",
    ),
    ({"scores": None}, {}, "has no scores"),
    ({"scores": np.array([np.nan])}, {}, "scores that are not finite"),
    ({"boxes": np.array([[0, 0, np.inf, 1]])}, {}, "boxes that are not finite"),
    ({"scores": np.array([0.5, 0.5])}, {}, "has 1 labels, but 2 scores"),
    ({}, {"masks": []}, "has 2 labels, but 0 masks"),
    ({}, {"masks": None}, "the truth has boxes only"),
    (
        {
            "masks": [
                {"size": [30, 30], "counts": run_lengths.encode(np.ones((1, 40, 40)))[0]["counts"]}
            ]
        },
        {},
        "damaged mask",
    ),
    ({"masks": [{"size": [30, 30], "counts": [0, 900]}]}, {}, "not in COCO's compressed form"),
]


@pytest.mark.parametrize("make", [CocoEvaluator, ProposalEvaluator])
@pytest.mark.parametrize(("prediction", "target", "said"), WRONG)
def test_objects_that_cannot_be_compared_are_refused_by_image(
    make: Any, prediction: dict, target: dict, said: str
) -> None:
    found, truth = one_hit()
    evaluator = make(["ant", "bee"])
    with pytest.raises(DataError, match=rf"^munich_7: .*{said}"):
        evaluator.update("munich_7", changed(found, **prediction), changed(truth, **target))
    with pytest.raises(NothingToMeasure, match="no image was evaluated"):
        evaluator.compute()


@pytest.mark.parametrize("make", [CocoEvaluator, ProposalEvaluator])
def test_label_maps_are_refused(make: Any) -> None:
    found, truth = one_hit()
    labels = np.zeros((30, 30), np.uint8)
    wrong = [(torch.from_numpy(labels), truth), (found, labels), (found, Scene(labels, labels))]
    for pair in wrong:
        with pytest.raises(
            DataError, match=r"^a: .*instances, not label maps; take metric=semantic"
        ):
            make(["ant", "bee"]).update("a", *pair)


@pytest.mark.parametrize("make", [CocoEvaluator, ProposalEvaluator])
def test_no_image_counts_twice(make: Any) -> None:
    one = make(["ant", "bee"])
    other = make(["ant", "bee"])
    one.update("a", *one_hit())
    other.update("a", *one_hit())
    with pytest.raises(InternalError, match=r"^a: evaluated twice"):
        one.update("a", *one_hit())
    with pytest.raises(InternalError, match=r"^a: evaluated by two processes"):
        one.merge([one.state(), other.state()])


def test_boxes_are_no_masks() -> None:
    found, truth = one_hit()
    boxes = changed(found, masks=None)
    for evaluator in (CocoEvaluator(["ant"], kinds=["segm"]), ProposalEvaluator(["ant"])):
        with pytest.raises(DataError, match=r"^a: the prediction has boxes only"):
            evaluator.update("a", boxes, truth)
    mixed = CocoEvaluator(["ant"])
    mixed.update("a", found, truth)
    mixed.update("b", boxes, truth)
    with pytest.raises(DataError, match=r"^b: this prediction has boxes only, others have masks"):
        mixed.compute()
