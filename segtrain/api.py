"""segtrain from Python: compose, create_model, fit, load, predict, evaluate.

The commands stand on the same functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from torch import Tensor, nn

from segtrain.benchmarks import photos
from segtrain.checkpoints import manifest, match, reading
from segtrain.config import files, instantiate, parts, places
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.hydra_state import left_alone
from segtrain.config.schema import RunConf, dataset_keys
from segtrain.config.trust import trusting
from segtrain.contracts import Dataset, Predictor
from segtrain.data.images import Picture, pixels_of, read_image
from segtrain.data.reordered import in_order
from segtrain.data.workers import none_left
from segtrain.engine import from_python
from segtrain.engine.evaluate import evaluate as evaluate_pass
from segtrain.engine.inputs import as_trained
from segtrain.engine.parts import check_judged
from segtrain.errors import UserError
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World, pick_device, use_threads
from segtrain.runtime.guest import as_new_process
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap

Image = np.ndarray | Tensor | Picture | str | Path
Prefer = Literal["best", "latest"]


def compose(overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> RunConf:
    """Return the config that `segtrain OVERRIDES` would train, as an object.

    `trust` are installed packages of your own, whose parts and configs may be named. A Hydra that
    your program uses itself is left as it is. Errors: UserError with a suggestion.
    """
    with left_alone(), trusting(trust):
        cfg, _ = compose_config(_words(overrides, "overrides"))
        return check(cfg)


def create_model(
    name: str, num_classes: int, *, trust: Sequence[str] = (), **arguments: Any
) -> nn.Module:
    """Build a network by the name of its file in conf/model.

    For example `create_model("deeplabv3plus", 21, backbone="resnet50")`. In eval mode it maps float
    images (B, 3, H, W), normalised as `model.preprocess` does, to {"logits": (B, K, H, W)}. `trust`
    are installed packages of your own. Errors: UserError for an unknown name, argument or value.
    """
    whole = isinstance(num_classes, Integral) and not isinstance(num_classes, bool)
    if not whole or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r:.40}: give how many classes there are, from 1")
    node = compose([f"model={name}"], trust=trust).model
    with trusting(trust):
        return instantiate.build(
            {**node, **arguments}, f"create_model({name!r})", num_classes=num_classes
        )


def _words(settings: Sequence[str], name: str) -> list[str]:
    """Return settings as a list. Errors: UserError for one text, whose letters would be read."""
    if isinstance(settings, str) or not isinstance(settings, Iterable):
        one = settings if isinstance(settings, str) else "train.steps=7"
        raise UserError(f'{name}={settings!r:.80}: give a list of settings, {name}=["{one:.80}"]')
    return [str(each) for each in settings]


@dataclass
class Loaded:
    """A trained network with its inference: calling it with an image gives the prediction."""

    run: RunConf
    network: nn.Module
    predictor: Predictor
    precision: Precision
    labels: LabelMap
    source: manifest.Checkpoint
    averaged: bool  # whether the weights are the moving average

    @property
    def device(self) -> torch.device:
        """Return where it computes."""
        return next(self.network.parameters()).device

    @overload
    def __call__(self, image: Image, sample_id: str = "") -> Tensor | Instances | Segments: ...

    @overload
    def __call__(self, image: Sequence[Image]) -> list[Tensor | Instances | Segments]: ...

    def __call__(self, image: Any, sample_id: str = "") -> Any:
        """Predict one image: a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W).

        Of a list of images it gives a list of predictions. Arrays and tensors are uint8 RGB.

        Returns a label map (H, W) uint8, or objects as `Segments`, of which
        `run_lengths.decode(objects.masks, objects.size)` makes dense masks; both at the image's own
        size. `sample_id` is needed where the inference reads proposals from a file; that of a path
        is its name without suffix. Errors: UserError for an image of another type or shape.
        """
        if isinstance(image, list | tuple):
            return [self(each) for each in image]
        tensor, sample_id = _read(image, sample_id)
        with torch.inference_mode(), self.precision:
            return self.predictor(tensor.to(self.device), sample_id)

    @overload
    def probabilities(self, image: Image, sample_id: str = "") -> Tensor: ...

    @overload
    def probabilities(self, image: Sequence[Image]) -> list[Tensor]: ...

    def probabilities(self, image: Any, sample_id: str = "") -> Any:
        """Return the probabilities (K, H, W) fp32 of one image, at its own size.

        They are those of the run's inference, views and CRF included, and the label map is the
        class of the largest. Takes and refuses images as a call does, lists too. Errors: UserError
        for a network of objects, which have scores.
        """
        if isinstance(image, list | tuple):
            return [self.probabilities(each) for each in image]
        tensor, sample_id = _read(image, sample_id)
        with torch.inference_mode(), self.precision:
            return self.predictor.probabilities(tensor.to(self.device), sample_id)


def _read(image: Image, sample_id: str) -> tuple[Tensor, str]:
    """Return an image as a tensor (3, H, W) uint8, and its id. Errors: UserError, DataError."""
    if isinstance(image, (str, Path)):
        sample_id = sample_id or Path(image).stem
        image = read_image(image)
    elif isinstance(image, Picture):
        image = pixels_of(image)
    array = isinstance(image, np.ndarray)
    if (
        not isinstance(image, np.ndarray | Tensor)
        or str(image.dtype).removeprefix("torch.") != "uint8"
        or image.ndim != 3
        or image.shape[2 if array else 0] != 3
    ):
        what = type(image).__name__
        if isinstance(image, np.ndarray | Tensor):
            what = f"image of shape {tuple(image.shape)} and type {image.dtype}"
        raise UserError(f"{what}: give uint8 RGB, (H, W, 3) or (3, H, W), a path or a PIL image")
    if 0 in image.shape:
        raise UserError(f"image of shape {tuple(image.shape)}: has no pixels")
    if isinstance(image, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), sample_id
    return image, sample_id


def stored_run(source: manifest.Checkpoint) -> RunConf:
    """Return the config inside a checkpoint, which may come from a stranger.

    It is checked, and nothing is run. Folders that it would write to are left out: those are named
    by who types. Relative places mean the folder that the run was started in. Errors: UserError.
    """
    run = files.stored_run(source.meta.get("config"), str(source.path))
    run = replace(run, eval=replace(run.eval, output=None, submission=None))
    parts.check(run)
    started_in = source.meta.get("started_in")
    return places.from_start(run, started_in if isinstance(started_in, str) else None)


def load(
    path: str | Path,
    *,
    prefer: Prefer = "best",
    device: str = "auto",
    run: RunConf | None = None,
    source: manifest.Checkpoint | None = None,
    trust: Sequence[str] = (),
) -> Loaded:
    """Load the network of a run folder (its best checkpoint), a checkpoint folder or a file in one.

    `device` is auto, cpu, cuda or cuda:N. `run` replaces the stored config (what `segeval` does
    with overrides). `trust` are installed packages of your own that the run's parts come from.
    Errors: UserError.
    """
    _path(path, "segtrain.load", "a run or a checkpoint")
    if prefer not in get_args(Prefer):
        raise UserError(f"prefer={prefer}: not one of {', '.join(get_args(Prefer))}")
    with trusting(trust):
        return _load(path, prefer, device, run, source)


def _load(
    path: str | Path,
    prefer: Prefer,
    device: str,
    run: RunConf | None,
    source: manifest.Checkpoint | None,
) -> Loaded:
    source = source or reading.find(path, prefer)
    typed = run is not None and _names_another_input(run, source)
    run = run or stored_run(source)
    labels = LabelMap.from_record(source.meta.get("labels"), str(source.path))
    chosen = pick_device(device)
    # The weights come from the checkpoint, so nothing is to be fetched for the backbone.
    node = {**run.model, **({"weights": None} if "weights" in run.model else {})}
    layout = torch.channels_last if run.train.channels_last else torch.contiguous_format
    network = parts.model(node, labels.num_classes, chosen, layout).eval()
    averaged = "ema.pt" in source.files
    state = source.read("ema" if averaged else "model")
    state = match.modern_state(match.tensors(state, source.path), source.meta.get("config"))
    if averaged:
        state = {
            key.removeprefix("module."): value
            for key, value in state.items()
            if key != "n_averaged"
        }
    match.load_exactly(network, state, source.path)
    if not typed:
        as_trained(network, source)
    precision = Precision(run.train.precision, chosen.type)
    predictor = parts.predictor(run, network)
    predictor.attach(lambda other: load(other, prefer=prefer, device=str(chosen)), labels.names)
    return Loaded(run, network, predictor, precision, labels, source, averaged)


def _names_another_input(run: RunConf, source: manifest.Checkpoint) -> bool:
    """Tell whether `run` names another input than the config inside the checkpoint."""
    asked = run.model.get("input")
    return asked is not None and asked != stored_run(source).model.get("input")


def _path(path: Any, call: str, what: str) -> None:
    """Refuse what is no path. Errors: UserError."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise UserError(f"{call}: {path!r:.80} is no path; give that of {what}")


def _loaded(predictor: Loaded | str | Path, call: str, trust: Sequence[str] = ()) -> Loaded:
    """Return a loaded network, that of a path if one is given. Errors: UserError."""
    if isinstance(predictor, str | Path):
        return load(predictor, trust=trust)
    if not isinstance(predictor, Loaded):
        raise UserError(
            f"{call}: a {type(predictor).__name__} is no network; give what segtrain.load(RUN) "
            "returns, or the path RUN"
        )
    return predictor


def evaluate(
    predictor: Loaded | str | Path,
    dataset: str | None = None,
    root: str | None = None,
    split: str | None = None,
    workers: int = 0,
    *,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[str, float]:
    """Measure `predictor` on a data set by its name in conf/dataset, as its benchmark does.

    `predictor` is what `load` returns, or a path that it takes.
    Without a name it is the data set that the run was trained with. `settings` say more of it, as
    on the command line: `["dataset.annotations=truth.json"]`. Every image is predicted at its own
    size. `split` defaults to the data set's validation split. Classes are known by name: the data
    set may list those of the network in another order. Errors: UserError when the classes differ,
    DataError.
    """
    predictor = _loaded(predictor, "segtrain.evaluate", trust)
    words = [f"dataset.root={root}"] if root is not None else []
    words += _words(settings, "settings")
    with trusting(trust):
        if dataset is None:
            run = with_overrides(predictor.run, words) if words else predictor.run
        else:
            run = compose([f"dataset={dataset}", *words], trust=trust)
        images = parts.dataset(run.dataset, split or dataset_keys(run.dataset).val_split)
        images = by_classes_of(predictor.labels, images)
        evaluator = parts.evaluator(run.metric, list(images.labels.names))
    check_judged(predictor.predictor, evaluator)
    with as_new_process(), none_left():
        use_threads(predictor.run.train.threads, 1)
        return evaluate_pass(
            predictor.network,
            predictor.predictor,
            images,
            evaluator,
            world=World(device=predictor.device),
            precision=predictor.precision,
            workers=workers,
        )


@overload
def predict(
    predictor: Loaded | str | Path,
    input: Image | Sequence[Image],
    output: None = None,
    *,
    annotations: str | Path | None = None,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Any: ...


@overload
def predict(
    predictor: Loaded | str | Path,
    input: str | Path,
    output: str | Path,
    *,
    annotations: str | Path | None = None,
    probabilities: bool = False,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[Path, Path]: ...


def predict(
    predictor: Loaded | str | Path,
    input: Any,
    output: str | Path | None = None,
    *,
    annotations: str | Path | None = None,
    probabilities: bool = False,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Any:
    """Predict as `segpredict` does: the same values, in files or as what is returned.

    `predictor` is what `load` returns, or a path that it takes; `trust` is as there, and `settings`
    are those of the command, `["eval.flip=true"]`. `annotations` is a COCO file that gives photos
    their ids by name.

    With an `output` folder, `input` is a photo, or a folder of them: returns for each photo the
    file that holds its label map (PNG) or its objects (JSON); an overlay lies beside it, and with
    `probabilities` an array (K, H, W). Errors: UserError, DiskError, and DataError at the end where
    some photos could not be read: the others are written then.

    Without one nothing is written. `input` is an image, as a loaded network takes it, a list of
    them, or a folder: returns what the file would hold, a list of that, or {photo: that}. It is a
    label map (H, W) in the data set's own ids, or a list of objects in the form of COCO's results;
    the id of an image without a file is its place in the list. Errors: UserError, DataError.
    """
    if output is not None or isinstance(input, str | Path):
        _path(input, "segtrain.predict", "the input, a file or a folder")
    if output is not None:
        _path(output, "segtrain.predict", "the output, a folder")
    elif probabilities:
        raise UserError(
            "segtrain.predict: probabilities are written to an output; without one, "
            "segtrain.load(RUN).probabilities(image) returns them"
        )
    predictor = _loaded(predictor, "segtrain.predict", trust)
    if settings:
        with trusting(trust):
            run = with_overrides(predictor.run, _words(settings, "settings"))
            source = predictor.source
            predictor = load(source.path, device=str(predictor.device), run=run, source=source)
    with as_new_process():
        use_threads(predictor.run.train.threads, 1)
        if output is None:
            if predictor.run.eval.submission:
                raise UserError("eval.submission: what a server takes needs an output folder too")
            return _values(predictor, input, None if annotations is None else Path(annotations))
        seen = predict_photos(
            predictor, input, output, annotations=annotations, probabilities=probabilities
        )
        seen.complain()
        return seen.files


def _values(predictor: Loaded, input: Any, annotations: Path | None, place: int = 0) -> Any:
    """Return what the files of `input` would hold, see `predict`; `place` is that in a list."""
    if isinstance(input, list | tuple):
        return [_values(predictor, each, annotations, at) for at, each in enumerate(input)]
    if not isinstance(input, str | Path):
        return photos.as_written(predictor(input), predictor.labels, place)
    named, _ = photos.input_images(Path(input))
    ids = photos.image_ids(named, annotations, predictor.run)
    values = {
        path: photos.as_written(predictor(path, name.as_posix()), predictor.labels, ids[path])
        for path, name in named.items()
    }
    return values if Path(input).is_dir() else values[Path(input)]


def predict_photos(
    predictor: Loaded,
    input: str | Path,
    output: str | Path,
    *,
    annotations: str | Path | None = None,
    probabilities: bool = False,
) -> photos.Predicted:
    """Do as `predict`, and return what could not be read instead of raising it."""
    return photos.predict_photos(
        Path(input),
        Path(output),
        predictor.labels,
        predictor.run,
        predictor,
        probabilities=predictor.probabilities if probabilities else None,
        annotations=None if annotations is None else Path(annotations),
    )


def fit(run: RunConf, folder: str | Path, *, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Train `run`, what `compose` gives, in `folder` to the end, and return its summary.

    It is what `segtrain` does, with the same files and bits: in several processes where
    `train.processes` or the GPUs say so, and from where it was stopped where the folder holds this
    run unfinished. A complete one is left alone. An interrupt (the stop button of a notebook) saves
    the step and raises Interrupted; a second one, or one before the first step, KeyboardInterrupt.
    Afterwards the process is as it was: signals, threads, random state, how torch computes. In a
    thread other than the main one no signal reaches it, and nobody else should draw torch's random
    numbers meanwhile. Errors: those of training; UserError where the folder holds another run.
    """
    if not isinstance(run, RunConf):
        raise UserError(
            f"segtrain.fit: a {type(run).__name__} is no run; give what segtrain.compose([...]) "
            "returns"
        )
    _path(folder, "segtrain.fit", "a folder for the run")
    with trusting(trust):
        return from_python.fit(run, Path(folder))


def by_classes_of(trained: LabelMap, images: Dataset) -> Dataset:
    """Return `images` with their classes in the order of the network's, by name.

    Errors: UserError for other classes: metrics mean something only on those of the network.
    """
    same = in_order(images, trained.names)
    if same is not None:
        return same
    asked = images.labels
    strange = [f"not {name}" for name in asked.names if name not in trained.names][:2]
    strange += [f"but {name}" for name in trained.names if name not in asked.names][:2]
    raise UserError(
        f"the checkpoint knows {trained.num_classes} classes of {trained.name}, the data set "
        f"has {asked.num_classes} of {asked.name}"
        f"{' (it knows ' + ', '.join(strange) + ')' if strange else ''}; "
        "take the data set it was trained for, or train on this one with train.init="
    )
