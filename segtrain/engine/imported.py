"""Make a run of weights that were trained elsewhere.

It is an ordinary run at step 0, which `segeval`, `segpredict`, `load` and `train.init=` take.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from segtrain.checkpoints import match, reading, writing
from segtrain.config import parts as config_parts
from segtrain.config.schema import RunConf, dataset_keys
from segtrain.contracts import Dataset, Model
from segtrain.engine.parts import check_model, check_task
from segtrain.errors import UserError, printable
from segtrain.layers.preprocess import record_of
from segtrain.logs.summary import write_json
from segtrain.runtime.distributed import World
from segtrain.runtime.run_folder import NewRun, claimed
from segtrain.structures.labels import LabelMap
from segtrain.weights.family import Published, require_finite

DIFFERENCES_SHOWN = 3  # in a message


def starting_weights(source: str) -> reading.Start:
    """Read the weights that `train.init` names, by our names, and what is known of them.

    A run and a file of a published family know classes and input, another file neither. Errors:
    UserError.
    """
    if not reading.is_bare(source):
        return reading.weights_of(source)
    from segtrain.weights.families import recognise  # only now: most runs need no family
    from segtrain.weights.formats import read_weights

    file = read_weights(source)
    known = recognise(source, file)
    if known is None:
        return reading.Start(file.values, [])
    published = known.published
    if published.classes is None:
        return reading.Start(known.state, [], published.input)
    names = list(LabelMap.load(published.classes).names)
    if len(names) - 1 == published.num_classes and names[0] == "background":
        names = names[1:]  # PASCAL-Context's 59 classes
    known_names = names if len(names) == published.num_classes else []
    return reading.Start(known.state, known_names, published.input)


def dataset_of(run: RunConf) -> Dataset:
    """Build the data set whose classes the weights have. Errors: UserError, DataError."""
    return config_parts.dataset(run.dataset, dataset_keys(run.dataset).measured_split)


def network_of(run: RunConf, dataset: Dataset) -> nn.Module:
    """Build the network of `run` for the classes of `dataset`. Errors: UserError."""
    network = config_parts.model(run.model, dataset.labels.num_classes)
    check_task(check_model(network), dataset)
    return network.eval()


def by_names(
    network: nn.Module, dataset: Dataset, state: dict[str, Tensor], published: Published
) -> dict[str, Tensor]:
    """Return `state` with the rows of classes in the order of `dataset`.

    They follow the release's table of classes where the data set has these very classes; other
    files have the data set's order.
    """
    names = dataset.labels.names
    theirs = () if published.classes is None else LabelMap.load(published.classes).names
    wanted = network.state_dict()
    other_order = names != theirs and sorted(names) == sorted(theirs)
    if not other_order or not match.compare(wanted, state).loaded:
        return state
    layout = cast(Model, network).class_rows()
    ordered, fits = match.init_from(wanted, state, names, theirs, layout)
    return {key: ordered[key] if key in fits.rows else value for key, value in state.items()}


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], path: str, whole: bool = False
) -> match.Match:
    """Load `state`, which has exactly the tensors of `network`, and return how they fit.

    `whole`: print every tensor that differs. Errors: UserError.
    """
    wanted = network.state_dict()
    fits = match.compare(wanted, state)
    if not fits.exact:
        if whole:
            print("\n".join(map(printable, fits.table().splitlines())))  # keys are a stranger's
        raise UserError(f"{path}: does not fit the model, {_in_short(fits)}")
    for key, value in state.items():
        if wanted[key].is_floating_point() != value.is_floating_point():
            raise UserError(f"{path}: {key} holds {value.dtype}, the model {wanted[key].dtype}")
    require_finite(state, path)
    network.load_state_dict(state)
    return fits


def _in_short(fits: match.Match) -> str:
    """Say in one line how tensors fit, by modules, and the first that differ."""
    modules = [f"{part} {n} of {count}" for part, (n, count) in fits.parts().items()]
    differences = [
        *(f"{key}: model {mine}, file {theirs}" for key, (mine, theirs) in fits.reshaped.items()),
        *(f"{key}: not in the file" for key in fits.new),
        *(f"{key}: not in the model" for key in fits.unused),
    ]
    shown = "; ".join(differences[:DIFFERENCES_SHOWN])
    more = len(differences) - DIFFERENCES_SHOWN
    rest = f"; and {more} more, which table=whole lists" if more > 0 else ""
    return f"tensors that fit: {', '.join(modules)}; {shown}{rest}"


def write(
    folder: Path,
    new: NewRun,
    config: Mapping[str, Any],
    network: nn.Module,
    dataset: Dataset,
    source: Mapping[str, Any],
) -> None:
    """Write the run of `network` to `folder`.

    `config` are its settings as text, `source` says where the weights are from. Errors: UserError
    and LockedError where the folder holds something else, DiskError.
    """
    with claimed(folder, new, World()):
        meta = {
            "config": dict(config),
            "started_in": new.started_in,
            "class_names": list(dataset.labels.names),
            "labels": dataset.labels.record(),
            "input": record_of(network),
            "imported": dict(source),
            "evaluated": False,
            "score": None,
            "best": None,
            "numbers": {},
            "train": {},
            "samples_seen": 0,
        }
        writing.save(folder / "checkpoints", 0, {"model": network.state_dict()}, meta)
        parameters = sum(value.numel() for value in network.parameters())
        (folder / "metrics.jsonl").touch()  # nothing was measured yet
        write_json(
            folder / "summary.json",
            {"status": "imported", "step": 0, "from": dict(source), "parameters": parameters},
        )
