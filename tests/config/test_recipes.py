"""Every recipe of conf/experiment and conf/ablation composes, and what it names can be built and
fits together.

Everything is built on the meta device: real sizes, no memory, no arithmetic. Values are judged in
tests/config/test_experiments.py.
"""

from __future__ import annotations

import itertools
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from recipes import OBJECTS, classes_of, composed, model_of, sampled
from torch._subclasses.fake_tensor import FakeTensorMode

from segtrain.config import parts
from segtrain.config.compose import with_overrides
from segtrain.config.schema import RunConf
from segtrain.config.suggest import groups
from segtrain.losses.border_weight import BorderCrossEntropy
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAGE = runpy.run_path(str(ROOT / "scripts" / "systems_table.py"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAPERS = [name for name in EXPERIMENTS if not name.endswith("_camvid")]
ABLATIONS = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
TINY = {
    "backbone": "resnet18",
    "weights": None,
    "norm": "group",
    "width": 32,
    "hidden": 32,
    "regions": 16,
    "proposals": [40, 20],
}
# of a command: words for where things are
NO_PLACE = (
    "checkpoint",
    "dataset.root",
    "dataset.sbd",
    "eval.submission",
)


def check_parts(run: RunConf) -> None:
    """Build every part, and see that the batch is large enough for the model's batch statistics."""
    model = model_of(run)
    optimizer = parts.optimizer(run.optimizer, model)
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == sum(parameter.requires_grad for parameter in model.parameters())
    schedule = parts.schedule(run.schedule, run.train.steps)
    assert 0 < schedule(0) <= schedule(schedule.warmup) == 1
    assert 0 <= schedule(run.train.steps - 1) <= 1
    assert callable(parts.predictor(run, model))
    assert callable(parts.augment(run.augment))
    assert parts.loss(run.loss).weights
    assert run.train.batch_size // run.train.accumulate >= getattr(model, "min_train_batch", 1)


def check_loss(run: RunConf) -> None:
    """Let a training batch of the recipe's crop through model and loss: the terms are there, scores
    and labels fit.
    """
    augment = parts.augment(run.augment)
    criterion = parts.loss(run.loss).train()
    if classes_of(run.dataset) == OBJECTS.get(run.dataset["_target_"].rpartition(".")[2]):
        check_loss_of_objects(run, criterion)
        return
    count = min(run.train.batch_size // run.train.accumulate, 2)
    images = torch.empty(count, 3, *augment.crop, dtype=torch.uint8, device="meta")
    sizes = torch.tensor([list(augment.crop)] * count, device="meta")
    output = model_of(run).train()(Batch(images, sizes, [""] * count, masks=images[:, 0]))
    if isinstance(criterion, BorderCrossEntropy):  # it draws its map on the host
        assert list(output["logits"].shape[-2:]) == [
            side - 2 * criterion.margin for side in augment.crop
        ]
        return
    with FakeTensorMode(allow_non_fake_inputs=True):  # as meta, but of a device that autocast knows
        given = {key: torch.empty(value.shape) for key, value in output.items()}
        truth = Batch(
            torch.empty(1),
            sizes,
            [""] * count,
            masks=torch.empty(count, *augment.crop, dtype=torch.uint8),
        )
        terms = criterion(given, truth)
        assert set(terms) == set(criterion.weights) == set(criterion.counts(truth) or terms)


def check_loss_of_objects(run: RunConf, criterion: Any) -> None:
    """The same for objects, of which no shape is known before they are sampled: for real, on a
    trunk that is tiny.
    """
    changes = {key: value for key, value in TINY.items() if key in run.model}
    if isinstance(run.model.get("proposals"), int):
        changes["proposals"] = 20
    model = parts.model({**run.model, **changes}, classes_of(run.dataset)).train()
    image = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 16:48, 16:48] = True
    truth = Instances(
        torch.tensor([[16.0, 16, 48, 48]]), torch.tensor([0]), masks, torch.tensor([False])
    )
    batch = Batch(image, torch.tensor([[64, 64]]), [""], instances=[truth])
    output = model(batch)
    terms = criterion(output, batch)
    assert set(terms) == set(criterion.weights)
    assert all(terms[name].sum.isfinite() for name in terms)
    assert {name for name in output if not name.endswith("_target")} == set(terms) - {"dropped"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_parts_of_an_experiment_are_built(name: str) -> None:
    check_parts(composed(f"experiment={name}"))


@pytest.mark.parametrize("name", sampled(EXPERIMENTS))
def test_the_loss_of_an_experiment_reads_what_its_model_gives(name: str) -> None:
    check_loss(composed(f"experiment={name}"))


@pytest.mark.parametrize("name", sampled(PAPERS))
def test_the_commands_in_a_header_are_understood(name: str) -> None:
    header = PAGE["read_header"](CONF / "experiment" / f"{name}.yaml", PAGE["EXPERIMENT_KEYS"])
    commands = [command for key in ("Run", "Test") for command, _ in header.commands(key)]
    assert commands[0].startswith(f"segtrain experiment={name} dataset.root=FOLDER")
    assert any(command.startswith("segeval checkpoint=RUN") for command in commands)
    run = composed(f"experiment={name}")
    for program, *words in (command.split(" ") for command in commands):
        overrides = [word for word in words if word.partition("=")[0] not in NO_PLACE]
        if program == "segtrain":  # what is tested from here on, too
            run = trained(overrides)
            continue
        tested = with_overrides(run, overrides) if overrides else run
        # A run or file that is named is read at once, and there is none here.
        if not any(word.endswith(("=RUN", ".json")) for word in overrides):
            assert callable(parts.predictor(tested, model_of(tested)))


def trained(overrides: list[str]) -> RunConf:
    """What `segtrain OVERRIDES` trains. Plain settings are put in afterwards, which is quicker."""
    chosen = [word for word in overrides if word.partition("=")[0] in groups()]
    crossed = len(chosen) > 1  # another data set may lack or replace keys
    return (
        composed(*overrides)
        if crossed
        else with_overrides(composed(*chosen), [w for w in overrides if w not in chosen])
    )


@pytest.mark.parametrize("name", PAPERS)
def test_only_a_protocol_of_one_view_is_measured_on_the_way(name: str) -> None:
    run = composed(f"experiment={name}")
    views = (
        len(run.inference.get("scales", [])) > 1
        or "boxes" in run.inference
        or run.inference.get("views", 1) > 1
    )
    assert run.train.eval_every == (run.train.steps if views else None)


# ---------------------------------------------------------------------- ablations


def swept(name: str) -> dict[str, list[str]]:
    """Key -> values of a sweep, as Hydra splits them."""
    body = OmegaConf.to_container(OmegaConf.load(CONF / "ablation" / f"{name}.yaml"), resolve=False)
    params = body["hydra"]["sweeper"]["params"]
    parsed = OverridesParser.create().parse_overrides(
        [f"{key}={value}" for key, value in params.items()]
    )
    assert all(override.is_sweep_override() for override in parsed)
    return {o.key_or_group: list(o.sweep_string_iterator()) for o in parsed}


def combinations(name: str) -> list[list[str]]:
    """The jobs of a sweep, as overrides."""
    keys, values = zip(*swept(name).items(), strict=True)
    return [
        [f"{key}={value}" for key, value in zip(keys, job, strict=True)]
        for job in itertools.product(*values)
    ]


def every_value_once(name: str) -> list[list[str]]:
    """As few jobs as hold every value."""
    found = swept(name)
    longest = max(map(len, found.values()))
    return [
        [f"{key}={values[i % len(values)]}" for key, values in found.items()]
        for i in range(longest)
    ]


@cache
def job(name: str, *settings: str) -> RunConf:
    """One run of a sweep.

    Settings that are no groups are put in afterwards, which is five times quicker.
    """
    if any(setting.partition("=")[0] in groups() for setting in settings):
        return composed(f"ablation={name}", *settings)
    return with_overrides(composed(f"ablation={name}"), settings)


# One of each kind in `make test`: a number, a list, a choice, two keys at once.
QUICK_SWEEPS = ("pspnet_bins", "deeplabv3_aspp", "encnet_parts", "fpn_heads", "panet_parts")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK_SWEEPS else pytest.param(n, marks=pytest.mark.slow) for n in ABLATIONS],
)
def test_a_sweep_offers_every_value_and_one_of_its_runs_is_built(name: str) -> None:
    """That all of its runs can be built is asserted below, in `make test-all`."""
    runs = [job(name, *settings) for settings in every_value_once(name)]
    assert len(runs) > 1
    assert all(one != other for one, other in itertools.combinations(runs, 2))
    check_parts(runs[-1])


def test_one_value_sets_the_weights_of_both_se_losses() -> None:
    run = composed("ablation=encnet_se_weight", "loss.parts.semantic.weights.se=0.4")
    assert parts.loss(run.loss).weights == {"seg": 1.0, "se": 0.4, "se_aux": 0.4}


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_job_of_a_sweep_is_built_and_its_loss_reads_what_its_model_gives(name: str) -> None:
    runs = [composed(f"ablation={name}", *settings) for settings in combinations(name)]
    assert all(one != other for one, other in itertools.combinations(runs, 2))
    for run in runs:
        check_parts(run)
        check_loss(run)


def test_a_window_of_the_crop_is_the_stored_runs_and_not_the_default_data_sets() -> None:
    run = composed("dataset=voc", "dataset.crop=[513,513]")
    assert with_overrides(run, ["inference=slide"]).inference["window"] == [513, 513]
    assert with_overrides(run, ["inference=slide", "dataset=camvid"]).inference["window"] == [
        240,
        320,
    ]
