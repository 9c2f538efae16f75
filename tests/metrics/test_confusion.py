"""The confusion matrix against a slow count, and its numbers against arithmetic on paper."""

import math
import random
from itertools import chain

import numpy as np
import pytest
import torch
from rows import Tally, amount

from segtrain.data.sampler import shard
from segtrain.errors import DataError, InternalError, NothingToMeasure, UserError
from segtrain.metrics.confusion import SemanticEvaluator, accuracy, confusion, iou, numbers
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import Scene


def maps(
    classes: int, seed: int, shape: tuple[int, int] = (13, 17)
) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, shape).astype(np.uint8)
    target[rng.random(shape) < 0.2] = 255
    return torch.from_numpy(rng.integers(0, classes, shape).astype(np.uint8)), target


def slow(prediction: torch.Tensor, target: np.ndarray, classes: int) -> list[list[int]]:
    table = [[0] * classes for _ in range(classes)]
    for guess, truth in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != 255:
            table[truth][guess] += 1
    return table


@pytest.mark.parametrize("classes", [1, 2, 19, 180, 181, 255])
def test_the_matrix_equals_a_pixel_by_pixel_count(classes: int) -> None:
    prediction, target = maps(classes, seed=classes)
    matrix = confusion(prediction, target, classes)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == slow(prediction, target, classes)
    assert matrix.sum() == (target != 255).sum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_gives_the_same_matrix_and_the_maps_stay_as_they_were(
    dtype: torch.dtype,
) -> None:
    prediction, target = maps(5, seed=1)
    guess = prediction.to(dtype)
    truth = torch.from_numpy(target).to(dtype)
    assert confusion(guess, truth, 5).tolist() == slow(prediction, target, 5)
    assert torch.equal(guess, prediction.to(dtype))
    assert torch.equal(truth, torch.from_numpy(target).to(dtype))


def test_a_read_only_target_is_counted_without_a_warning() -> None:
    prediction, target = maps(3, seed=2)
    target.setflags(write=False)
    assert confusion(prediction, target, 3).tolist() == slow(prediction, target, 3)


@pytest.mark.parametrize(
    ("prediction", "target", "said"),
    [
        ([[0, 2]], [[0, 1]], "prediction holds 2, but classes are 0-1"),
        ([[0, 255]], [[0, 255]], "prediction holds 255"),
        ([[0, 1]], [[0, 7]], "truth holds 7, but classes are 0-1 and 255 is ignored"),
        ([[0, 1]], [[0, 2]], "truth holds 2"),
        ([[0, -1]], [[0, 1]], "prediction holds -1"),
        ([[0, 1]], [[0, -1]], "truth holds -1"),
        ([[0, 1]], [[0, 65536]], "truth holds 65536"),
        ([[0, 1]], [[0, 254]], "truth holds 254, but classes are 0-1 and 255 is ignored"),
        ([[0, 256]], [[0, 1]], "prediction holds 256"),
        ([[0, 1]], [[0]], "shape"),
    ],
)
def test_values_outside_the_classes_are_refused(prediction: list, target: list, said: str) -> None:
    with pytest.raises(DataError, match=said):
        confusion(torch.tensor(prediction), np.array(target), 2)


def test_every_illegal_byte_is_refused_in_the_truth_and_in_the_prediction() -> None:
    legal = torch.tensor([[0, 1]], dtype=torch.uint8)
    for value in range(2, 256):
        wrong = torch.tensor([[1, value]], dtype=torch.uint8)
        with pytest.raises(DataError, match=f"the prediction holds {value}, but classes are 0-1.$"):
            confusion(wrong, legal, 2)
        if value < 255:
            with pytest.raises(
                DataError,
                match=f"the truth holds {value}, but classes are 0-1 and 255 is ignored.$",
            ):
                confusion(legal, wrong, 2)
        if value < 254:
            with pytest.raises(
                DataError,
                match=f"prediction holds {value}, but classes are 0-1 and 254-255 are no class",
            ):
                confusion(wrong, legal, 2, voids=2)


@pytest.mark.parametrize("classes", [1, 3, 179, 180, 254])
def test_predictions_of_no_class_get_columns_behind_the_classes(classes: int) -> None:
    prediction, target = maps(classes, seed=classes)
    prediction[:2, :5] = 255
    prediction[2:4] = 254
    one = torch.where(prediction == 254, torch.full_like(prediction, 255), prediction)
    matrix = confusion(prediction, target, classes, voids=2)
    assert matrix.shape == (classes, classes + 2)
    for truth in range(classes):
        for column, value in [*enumerate(range(classes)), (classes, 254), (classes + 1, 255)][-4:]:
            assert int(matrix[truth, column]) == int(
                ((prediction.numpy() == value) & (target == truth)).sum()
            )
    assert torch.equal(confusion(one, target, classes, voids=1)[:, -1], matrix[:, -2:].sum(1))
    with pytest.raises(DataError, match="prediction holds 254"):
        confusion(prediction, target, classes, voids=1)


def test_a_prediction_of_no_class_is_a_miss_and_a_false_positive_of_none() -> None:
    # 10 true "road": 6 found, 1 called "car", 3 no class; 10 true "car": 8 found, 2 called "road"
    matrix = torch.tensor([[6, 1, 3], [2, 8, 0]])
    assert iou(matrix).tolist() == [pytest.approx(6 / 12), pytest.approx(8 / 11)]
    assert accuracy(matrix).tolist() == [pytest.approx(0.6), pytest.approx(0.8)]
    assert numbers(matrix, ["road", "car"])["pixAcc"] == pytest.approx(14 / 20)


def test_every_number_of_a_two_class_matrix_is_as_on_paper() -> None:
    # 10 true "road": 6 found, 4 called "car"; 10 true "car": 8 found, 2 called "road".
    result = numbers(torch.tensor([[6, 4], [2, 8]]), ["road", "car"])
    assert result == {
        "mIoU": pytest.approx((6 / 12 + 8 / 14) / 2),
        "pixAcc": pytest.approx(14 / 20),
        "mAcc": pytest.approx((6 / 10 + 8 / 10) / 2),
        "fwIoU": pytest.approx(10 / 20 * 6 / 12 + 10 / 20 * 8 / 14),
        "IoU/road": pytest.approx(0.5),
        "IoU/car": pytest.approx(8 / 14),
    }


def test_frequency_weights_are_the_true_pixels() -> None:
    result = numbers(torch.tensor([[3, 0], [1, 0]]), ["a", "b"])
    assert result["fwIoU"] == pytest.approx(3 / 4 * 3 / 4)


def test_an_absent_class_is_left_out_and_a_wrongly_predicted_one_counts_as_zero() -> None:
    # "ghost" is neither true nor predicted; "wrong" is predicted twice and never true
    result = numbers(torch.tensor([[8, 0, 2], [0, 0, 0], [0, 0, 0]]), ["road", "ghost", "wrong"])
    assert "IoU/ghost" not in result
    assert result["IoU/wrong"] == 0.0
    assert result["mIoU"] == pytest.approx((0.8 + 0) / 2)
    assert result["mAcc"] == pytest.approx(0.8)
    assert all(math.isfinite(value) for value in result.values())


def test_numbers_of_nothing_are_refused() -> None:
    with pytest.raises(NothingToMeasure, match="no labelled pixel"):
        numbers(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])


def test_classes_left_out_count_in_the_confusion_but_not_in_the_two_means() -> None:
    names = ["background", "cat", "dog"]
    matrix = torch.tensor([[80, 10, 0], [5, 5, 0], [0, 3, 7]])
    everything = numbers(matrix, names)
    without = numbers(matrix, names, leave_out=["background"])
    # cat: 5 of 10 true and 13 wrong; dog: 7 of 10
    assert without["mIoU"] == pytest.approx((5 / 23 + 7 / 10) / 2)
    assert without["mAcc"] == pytest.approx((5 / 10 + 7 / 10) / 2)
    assert {
        k: v for k, v in without.items() if k not in ("mIoU", "mAcc")
    }.items() <= everything.items()
    with pytest.raises(NothingToMeasure, match="no labelled pixel"):
        numbers(torch.tensor([[4, 1], [0, 0]]), ["background", "cat"], leave_out=["background"])


def test_an_evaluator_that_leaves_a_class_out_says_so_and_ranks_its_images_without_it() -> None:
    names = ["background", "cat"]
    plain = SemanticEvaluator(names)
    without = SemanticEvaluator(names, leave_out=["background"])
    for evaluator in (plain, without):
        evaluator.update("half", torch.tensor([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]], np.uint8))
        evaluator.update(
            "empty", torch.tensor([[0, 0, 0, 0]]), np.array([[0, 0, 0, 255]], np.uint8)
        )
    assert without.compute()["mIoU"] == plain.compute()["IoU/cat"] == 0.5
    assert plain.compute()["mIoU"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert without.worst(9) == [("half", 0.5)]  # nothing is known of a cat in the other one
    assert plain.worst(9) == [("half", pytest.approx((2 / 3 + 1 / 2) / 2)), ("empty", 1.0)]
    assert plain.protocol == (
        "confusion over the whole split at native size; void pixels of the truth dropped; "
        "mIoU over the classes present in truth or prediction"
    )
    assert without.protocol == plain.protocol + "; mIoU and mAcc without background"
    assert without.table().endswith(", means without background")
    assert "without" not in plain.table()


def test_a_class_to_leave_out_must_exist_and_one_must_remain() -> None:
    with pytest.raises(
        UserError, match=r"leave_out: there is no class `backgruond`. Did you mean `background`"
    ):
        SemanticEvaluator(["background", "cat"], leave_out=["backgruond"])
    with pytest.raises(UserError, match="leave_out: names every class"):
        SemanticEvaluator(["background", "cat"], leave_out=["cat", "background"])


def test_of_a_scene_the_mask_is_read() -> None:
    prediction, target = maps(3, seed=4)
    plain = SemanticEvaluator(["a", "b", "c"])
    scene = SemanticEvaluator(["a", "b", "c"])
    plain.update("x", prediction, target)
    scene.update("x", prediction, Scene(target, np.full(target.shape, 26001)))
    assert scene.compute() == plain.compute()


def test_instances_are_refused_in_either_form() -> None:
    label_map = np.zeros((2, 2), np.uint8)
    boxes = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2, dtype=torch.bool)
    )
    segments = Segments((2, 2), np.zeros(0, np.int64), np.zeros((0, 4)), [], np.zeros(0))
    for objects in (boxes, segments):
        for prediction, target in ((objects, label_map), (torch.from_numpy(label_map), objects)):
            with pytest.raises(
                DataError, match="x: this metric compares label maps, not instances"
            ):
                SemanticEvaluator(["a"]).update("x", prediction, target)


def evaluated(ids: list[int]) -> SemanticEvaluator:
    evaluator = SemanticEvaluator(["a", "b", "c"])
    for i in ids:
        evaluator.update(f"image{i}", *maps(3, seed=100 + i, shape=(5 + i, 9)))
    return evaluator


@pytest.mark.row("R11")
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_seven_images_on_any_number_of_ranks_give_the_same_numbers_table_and_worst(
    ranks: int,
) -> None:
    alone = evaluated(list(range(7)))
    states = [evaluated(list(range(rank, 7, ranks))).state() for rank in range(ranks)]
    merged = SemanticEvaluator(["a", "b", "c"])
    merged.update("forgotten", *maps(3, seed=1))  # merge replaces what was counted
    merged.merge(states[::-1])
    assert torch.equal(merged.matrix, alone.matrix)
    assert (
        merged.matrix[:, :3].tolist()
        == sum(np.array(slow(*maps(3, 100 + i, (5 + i, 9)), 3)) for i in range(7)).tolist()
    )
    assert merged.compute() == alone.compute()
    assert merged.table() == alone.table()
    assert merged.worst(7) == alone.worst(7)


@pytest.mark.row("R11")
def test_any_number_of_images_on_any_number_of_ranks_is_counted_once(tally: Tally) -> None:
    """As the sampler shares them out: some ranks have one more, some have none."""
    dice = random.Random(0)
    for _ in range(amount(2, 8, 60)):
        images = dice.randint(1, 12)
        ranks = dice.randint(2, 8)
        shares = [list(shard(images, rank, ranks)) for rank in range(ranks)]
        assert sorted(chain.from_iterable(shares)) == list(range(images))
        states = [evaluated(share).state() for share in shares]
        merged = SemanticEvaluator(["a", "b", "c"])
        merged.merge(states)
        alone = evaluated(list(range(images)))
        assert torch.equal(merged.matrix, alone.matrix)
        assert merged.compute() == alone.compute()
        assert merged.worst(images) == alone.worst(images)
        with pytest.raises(InternalError, match="evaluated by two processes"):
            merged.merge([*states, evaluated([dice.randrange(images)]).state()])  # padding
        tally(seed=0)


@pytest.mark.row("R11")
def test_a_rank_without_images_changes_nothing() -> None:
    merged = SemanticEvaluator(["a", "b", "c"])
    merged.merge([evaluated([]).state(), evaluated([0, 1]).state()])
    assert merged.compute() == evaluated([0, 1]).compute()


@pytest.mark.row("R11")
def test_the_same_image_twice_is_refused_within_a_rank_and_between_ranks() -> None:
    with pytest.raises(InternalError, match="image0: evaluated twice"):
        evaluated([0, 0])
    with pytest.raises(InternalError, match="image1: evaluated by two processes"):
        evaluated([]).merge([evaluated([0, 1]).state(), evaluated([1, 2]).state()])


def test_a_state_does_not_change_when_counting_goes_on() -> None:
    evaluator = evaluated([0])
    state = evaluator.state()
    evaluator.update("image1", *maps(3, seed=101))
    assert int(state["matrix"].sum()) < int(evaluator.matrix.sum())
    assert list(state["images"]) == ["image0"]


def test_worst_orders_by_the_images_own_miou_then_by_id_and_skips_ignored_images() -> None:
    evaluator = SemanticEvaluator(["a", "b"])
    half = torch.tensor([[0, 0]])  # one of two right: IoU of a 1/2, of b 0
    evaluator.update("z", half, np.array([[0, 1]], np.uint8))
    evaluator.update("y", half, np.array([[0, 1]], np.uint8))
    evaluator.update("perfect", half, np.array([[0, 0]], np.uint8))
    evaluator.update("ignored", half, np.array([[255, 255]], np.uint8))
    assert evaluator.worst(9) == [("y", 0.25), ("z", 0.25), ("perfect", 1.0)]
    assert evaluator.worst(1) == [("y", 0.25)]


def test_an_error_names_the_image() -> None:
    with pytest.raises(DataError, match="street_3: the prediction holds 9"):
        SemanticEvaluator(["a"]).update(
            "street_3", torch.full((2, 2), 9), np.zeros((2, 2), np.uint8)
        )


def test_the_table_shows_percentages_aligned_and_a_dash_for_an_absent_class() -> None:
    evaluator = SemanticEvaluator(["road", "bus", "pedestrian"])
    evaluator.matrix = torch.tensor([[6000, 0, 4000], [0, 0, 0], [2000, 0, 8000]])
    assert evaluator.table().splitlines() == [
        "class       IoU %  Acc %  pixels",
        "--------------------------------",
        "road        50.00  60.00  10,000",
        "bus             -      -       0",
        "pedestrian  57.14  80.00  10,000",
        "--------------------------------",
        "mean        53.57  70.00  20,000",
        "pixel accuracy 70.00 %, frequency-weighted IoU 53.57 %",
    ]


def test_the_counts_that_are_written_down_are_pixels_of_truth_and_prediction_by_class() -> None:
    evaluator = SemanticEvaluator(["a", "b"])
    evaluator.update("x", torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    # one pixel of a is a; of b one is a and one is b; the ignored pixel counts nowhere
    assert evaluator.counts() == {"confusion": {"classes": ["a", "b"], "counts": [[1, 0], [1, 1]]}}
