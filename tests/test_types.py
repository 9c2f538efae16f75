"""The type checker sees the contracts: what keeps them passes, and a mistake is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Each line that is a mistake ends in a comment with the name that the checker must say there. Where
# it names a class, the same class without the mistake stands below and passes.
PLANTED = """
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, nn

from segtrain.contracts import Augment, Dataset, Evaluator, Loss, Model, Predictor, Writer
from segtrain.data.base import BaseDataset
from segtrain.data.cache import Cached
from segtrain.data.shorter_edge import ShorterEdge
from segtrain.data.transforms import Augment as RandomCrop
from segtrain.datasets.camvid import CamVid
from segtrain.datasets.cityscapes import Cityscapes, CityscapesInstance
from segtrain.datasets.coco import CocoInstances, CocoJson, CocoProposals, CocoVOC
from segtrain.datasets.coco_stuff import CocoStuff
from segtrain.datasets.context import Context
from segtrain.datasets.folder import Folder
from segtrain.datasets.shapes import LABELS, Shapes
from segtrain.datasets.voc import VOC, VOCInstance
from segtrain.datasets.voc_crops import VOCCrops
from segtrain.inference.base import BasePredictor
from segtrain.inference.instances import InstanceSegmentation
from segtrain.inference.mask_proposals import BoxProposals, MaskProposals
from segtrain.inference.proposals import Proposals
from segtrain.inference.semantic import Semantic
from segtrain.inference.tile import OverlapTile
from segtrain.logs.writers import TensorBoard
from segtrain.losses.border_weight import BorderCrossEntropy
from segtrain.losses.combined import Combined
from segtrain.losses.multitask import MultiTask
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.losses.semantic_encoding import SemanticEncodingLoss
from segtrain.metrics.boundary import BoundaryEvaluator
from segtrain.metrics.cityscapes import CityscapesEvaluator
from segtrain.metrics.coco import CocoEvaluator, ProposalEvaluator
from segtrain.metrics.confusion import SemanticEvaluator
from segtrain.models.base import SegmentationModel
from segtrain.structures.samples import Files, Sample, Target, Truth


def use(images: Dataset) -> bool:
    return images.labeled  # labeled


class Misspelt(BaseDataset):
    def __init__(self) -> None:
        super().__init__(LABELS, ["a"], labeled=False)  # labeled

    def __getitem__(self, index: int) -> Sample:
        return Sample("a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))


class Numpy(BasePredictor):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, image: Tensor, sample_id: str = "") -> np.ndarray:
        return np.zeros((2, 2), np.uint8)


def predictor(model: nn.Module) -> Predictor:
    return Numpy(model)  # Numpy


class Nameless:
    def __init__(self) -> None:
        self.labels = LABELS
        self.labelled = True
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.labelled_with: Literal["masks", "instances"] = "masks"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample("a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))

    def scored(self, index: int) -> Sample:
        return self[index]

    def target(self, index: int) -> Target:
        return Target()

    def truth(self, index: int) -> Truth:
        return np.zeros((2, 2), np.uint8)

    def files(self, index: int) -> Files | None:
        return None

    def extra_files(self) -> Mapping[str, Path]:
        return {}

    def doubts(self, index: int) -> Sequence[str]:
        return ()

    def sizes(self) -> np.ndarray | None:
        return None

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        return raw


def nameless() -> Dataset:
    return Nameless()  # Nameless


class Named(Nameless):
    ids = ["a"]


def named() -> Dataset:
    return Named()


def datasets(
    a: CamVid, b: Cityscapes, c: CityscapesInstance, d: CocoInstances, e: CocoJson,
    f: CocoProposals, g: CocoVOC, h: CocoStuff, i: Context, j: Folder, k: Shapes, l: VOC,
    m: VOCInstance, n: VOCCrops, o: Cached,
) -> list[Dataset]:
    return [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o]


def augments(a: RandomCrop, b: ShorterEdge) -> list[Augment]:
    return [a, b]


def model(a: SegmentationModel) -> Model:
    return a


def losses(
    a: BorderCrossEntropy, b: Combined, c: MultiTask, d: PixelCrossEntropy, e: SemanticEncodingLoss
) -> list[Loss]:
    return [a, b, c, d, e]


def predictors(
    a: BoxProposals, b: InstanceSegmentation, c: MaskProposals, d: OverlapTile, e: Proposals,
    f: Semantic,
) -> list[Predictor]:
    return [a, b, c, d, e, f]


def evaluators(
    a: BoundaryEvaluator, b: CityscapesEvaluator, c: CocoEvaluator, d: ProposalEvaluator,
    e: SemanticEvaluator,
) -> list[Evaluator]:
    return [a, b, c, d, e]


def writers(a: TensorBoard) -> list[Writer]:
    return [a]
"""


def test_the_type_checker_names_three_mistakes_and_passes_every_part_of_ours(
    tmp_path: Path,
) -> None:
    source = tmp_path / "planted.py"
    source.write_text(PLANTED)
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "ty", "check", "--project", str(root), "--no-progress"]
    done = subprocess.run(
        [*command, "--output-format", "concise", str(source)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = re.findall(r"planted\.py:(\d+):\d+: error\S* (.*)", done.stdout)
    mistakes = {
        number: line.rpartition("# ")[2]
        for number, line in enumerate(PLANTED.split("\n"), 1)
        if re.search(r"  # \w+$", line)
    }
    assert len(mistakes) == 4
    assert sorted({int(number) for number, _ in said}) == sorted(mistakes), done.stdout
    for number, words in said:
        assert mistakes[int(number)] in words
