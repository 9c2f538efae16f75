"""Fit loaded tensors into a model: all or nothing, or what fits.

Classifiers can be matched class by class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.config.old_names import modern_parameters
from segtrain.errors import UserError, did_you_mean
from segtrain.structures.class_rows import ClassRows, rows_of

LEAST_OF_BACKBONE = 0.9  # of its elements
PAIRS_SHOWN = 2  # keys of the model, each with the nearest of the file


@dataclass(frozen=True)
class Match:
    """How loaded tensors fit a model, by their keys."""

    loaded: list[str]  # of equal shape
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape in the model, in the file
    new: list[str]  # not in the file
    unused: list[str]  # not in the model
    # Classifiers matched class by class: classes found by name, and all of the model's.
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Classifiers taken in the file's order of classes, as it does not name them.
    unnamed: list[str] = field(default_factory=list)
    # Taken as they are, although they may be classifiers of other classes: the model does not say.
    unsaid: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether keys and shapes are the same."""
        return not (self.reshaped or self.new or self.unused or self.rows)

    def parts(self) -> dict[str, tuple[int, int]]:
        """Return how many tensors of each part of the model ("backbone") are loaded, of how many.

        A classifier that takes some of its classes counts as loaded.
        """
        taken = [*self.loaded, *(key for key, (found, _) in self.rows.items() if found)]
        total = Counter(map(part_of, [*self.loaded, *self.rows, *self.reshaped, *self.new]))
        loaded = Counter(map(part_of, taken))
        return {part: (loaded[part], count) for part, count in total.items()}

    def holds(self, part: str, share: float = 0.5) -> bool:
        """Tell whether at least a share of a part's tensors come from the file, and some do."""
        loaded, total = self.parts().get(part, (0, 0))
        return loaded > 0 and loaded >= share * total

    def table(self) -> str:
        """Say in lines how many tensors fit, how many of each part, and which ones differ."""
        parts = [
            f"{part}: {loaded} of {total} tensors" for part, (loaded, total) in self.parts().items()
        ]
        rows = [
            f"{key}: {old} of {total} classes found by name"
            for key, (old, total) in self.rows.items()
        ]
        rows += [
            f"{key}: model {mine}, file {theirs}" for key, (mine, theirs) in self.reshaped.items()
        ]
        rows += [f"{key}: not in the file" for key in self.new]
        rows += [f"{key}: not in the model" for key in self.unused]
        count = f"{len(self.loaded)} tensors fit, {len(rows)} differ"
        if self.unnamed:
            keys = ", ".join(self.unnamed)
            rows.append(f"the file names no classes, so these have its order of them: {keys}")
        return "\n  ".join([count, *parts, *rows])

    def doubt(self) -> str | None:
        """Say in a line which tensors may have the rows of other classes; None where none may."""
        if not self.unsaid:
            return None
        return (
            "the classes have other names or another order, and the model does not say which of "
            f"its tensors have rows for them (class_rows): {', '.join(self.unsaid)} "
            "have as many rows, and were taken as they are"
        )


def part_of(key: str) -> str:
    """Return the part of a model that a tensor belongs to: "backbone" of "backbone.stem.0.bias"."""
    return key.partition(".")[0]


def compare(wanted: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> Match:
    """Sort the keys of a model's state and of a loaded one by whether they fit.

    They stay in the model's order. Errors: UserError for whole or complex numbers where the model
    has weights: torch would take them, without a word or with half of each.
    """
    both = [key for key in wanted if key in loaded]
    for key in both:
        mine = wanted[key].dtype
        theirs = loaded[key].dtype
        if mine.is_floating_point and not theirs.is_floating_point:
            raise UserError(
                f"{key}: model {_name(mine)}, file {_name(theirs)}; these are no weights of it. "
                "Quantised ones are to be stored as floats first"
            )
    shapes = {key: (tuple(wanted[key].shape), tuple(loaded[key].shape)) for key in both}
    return Match(
        loaded=[key for key in both if shapes[key][0] == shapes[key][1]],
        reshaped={key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
        new=[key for key in wanted if key not in loaded],
        unused=[key for key in loaded if key not in wanted],
    )


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of `state` or, with a UserError that holds the table of differences, nothing."""
    content = tensors(state, source)
    try:
        match = compare(model.state_dict(), content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if not match.exact:
        raise UserError(
            f"{source}: does not fit the model, is it of another model or data set? {match.table()}"
        )
    model.load_state_dict(state)


def init_from(
    model_state: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    names: Sequence[str],
    loaded_names: Sequence[str],
    layout: Mapping[str, ClassRows] | None = None,
    loaded_layout: Mapping[str, ClassRows] | None = None,
) -> tuple[dict[str, Tensor], Match]:
    """Return a full state for the model: `loaded` where it fits, the model's own values elsewhere.

    `names` are the model's classes, `loaded_names` those of the file in its order, [] where nobody
    knows them. `layout` says which of the model's tensors hold classes and how, as its `class_rows`
    does; `loaded_layout` says it of the file's, where that differs. Such tensors are copied class
    by class by name. Classes without a namesake keep the model's rows, and so does background where
    the file has none. Without names the file's rows are taken as they are.

    Where the model does not say (`layout` None), a tensor whose shapes differ in dimension 0 only,
    `len(loaded_names)` there and `len(names)` here, is a classifier. Equal numbers of classes
    cannot be told from channels: such tensors are taken as they are, and `Match.doubt` names them.

    Errors: UserError when nothing fits, or for a layout that is not the model's.
    """
    match = compare(model_state, loaded)
    other_classes = bool(loaded_names) and list(names) != list(loaded_names)
    unsaid: list[str] = []
    if layout is None:
        layout = _guessed(match, names, loaded_names)
        if other_classes and len(names) == len(loaded_names):
            unsaid = [key for key in match.loaded if model_state[key].shape[:1] == (len(names),)]
    else:
        check_layout(layout, model_state, names)
    by_name: dict[str, tuple[ClassRows, ClassRows]] = {}
    for key, mine in _said(layout, [*match.loaded, *match.reshaped]).items():
        theirs = rows_of(loaded_layout or {}, key) or mine
        if other_classes or (loaded_names and mine != theirs):
            by_name[key] = (mine, theirs)

    state = {key: value.detach().clone() for key, value in model_state.items()}
    taken = [key for key in match.loaded if key not in by_name]
    for key in taken:
        state[key].copy_(loaded[key])
    found = len({*names} & {*loaded_names})
    rows: dict[str, tuple[int, int]] = {}
    for key, (mine, theirs) in by_name.items():
        if _copy_rows(state[key], loaded[key], mine, theirs, names, loaded_names):
            rows[key] = (found, len(names))
    if not taken and not (rows and found):
        first_theirs = next(iter(loaded), "none")
        first_ours = next(iter(model_state), "none")
        raise UserError(
            f"none of the {len(loaded)} loaded tensors fits the model; first keys: the file has "
            f"{first_theirs!r}, the model {first_ours!r}"
        )
    reshaped = {
        key: (tuple(value.shape), tuple(loaded[key].shape))
        for key, value in model_state.items()
        if key in loaded and key not in taken and key not in rows
    }
    unnamed = [] if loaded_names else list(_said(layout, taken))
    return state, Match(taken, reshaped, match.new, match.unused, rows, unnamed, unsaid)


def check_layout(
    layout: Mapping[str, ClassRows], state: Mapping[str, Tensor], names: Sequence[str]
) -> None:
    """Refuse a layout that `state`, of a model of the classes `names`, cannot have.

    Errors: UserError for a key that is neither a tensor nor a layer, and for rows that the classes
    cannot share.
    """
    known = {*state, *(key.rpartition(".")[0] for key in state)}
    for key in layout:
        if key not in known:
            raise UserError(
                f"class_rows: the model has no tensor or layer `{key}`.{did_you_mean(key, known)}"
            )
    for key, rows in _said(layout, state).items():
        count = len(rows.owners(names))
        shape = tuple(state[key].shape)
        sizes = {shape[dim] if dim < len(shape) else 0 for dim in rows.dims}
        if len(sizes) != 1 or min(sizes) < 1 or min(sizes) % count:
            raise UserError(
                f"class_rows: {key} of shape {shape} does not hold {count} equal groups of rows "
                f"in dimension {' and '.join(map(str, rows.dims))}"
            )


def _said(layout: Mapping[str, ClassRows], keys: Iterable[str]) -> dict[str, ClassRows]:
    """Return how those of the tensors `keys` that hold classes do."""
    return {key: rows for key in keys if (rows := rows_of(layout, key)) is not None}


def _guessed(
    match: Match, names: Sequence[str], loaded_names: Sequence[str]
) -> dict[str, ClassRows]:
    """Return what are classifiers by their shapes alone, where numbers of classes differ."""
    if not {*names} & {*loaded_names}:
        return {}
    return {
        key: ClassRows()
        for key, (mine, theirs) in match.reshaped.items()
        if mine[:1] == (len(names),) and theirs == (len(loaded_names), *mine[1:])
    }


def _copy_rows(
    own: Tensor,
    loaded: Tensor,
    mine: ClassRows,
    theirs: ClassRows,
    names: Sequence[str],
    loaded_names: Sequence[str],
) -> bool:
    """Copy into `own` what `loaded` holds of the same classes, and of background.

    Returns False, and copies nothing, where the two do not fit: a class must have as many rows in
    both, and other dimensions must be of equal size.
    """
    owners = mine.owners(names)
    their_owners = theirs.owners(loaded_names)
    each = own.shape[mine.dims[0]] // len(owners)  # rows of one class
    fitting = tuple(
        each * len(their_owners) if dim in mine.dims else size for dim, size in enumerate(own.shape)
    )
    if mine.dims != theirs.dims or loaded.shape != fitting:
        return False
    common = [owner for owner in owners if owner in their_owners]
    here = _rows([owners.index(owner) for owner in common], each).to(own.device)
    there = _rows([their_owners.index(owner) for owner in common], each).to(loaded.device)
    for dim in mine.dims:
        loaded = loaded.index_select(dim, there)
    own.copy_(_placed(own, loaded.to(own), here, mine.dims))
    return True


def _rows(groups: Sequence[int], each: int) -> Tensor:
    """Return the rows of `groups`, which have `each` of them."""
    return (torch.tensor(groups, dtype=torch.int64)[:, None] * each + torch.arange(each)).flatten()


def _placed(own: Tensor, part: Tensor, rows: Tensor, dims: Sequence[int]) -> Tensor:
    """Return `own` with `part` at the same `rows` of each of the dimensions `dims`."""
    dim, *rest = dims
    if rest:
        part = _placed(own.index_select(dim, rows), part, rows, rest)
    return own.index_copy(dim, rows, part)


def require_backbone(
    wanted: Mapping[str, Tensor], match: Match, loaded: Mapping[str, Tensor], source: str | Path
) -> None:
    """Refuse a foreign file with less than nine tenths of the backbone's elements.

    Otherwise one tensor that fits by chance would let the training start from scratch. Errors:
    UserError with keys of the model and the nearest of the file.
    """
    sizes = {
        key: value.numel()
        for key, value in wanted.items()
        if part_of(key) == "backbone" and not key.endswith("num_batches_tracked")
    }
    fits = sum(sizes.get(key, 0) for key in match.loaded)
    if fits >= LEAST_OF_BACKBONE * sum(sizes.values()):
        return
    missing = [key for key in sizes if key not in match.loaded][:PAIRS_SHOWN]
    pairs = [
        f"{key} (nearest in the file: {get_close_matches(key, loaded, n=1, cutoff=0)[0]})"
        for key in missing
    ]
    raise UserError(
        f"{source}: has {fits / sum(sizes.values()):.0%} of the backbone's values, so most of it "
        f"would start from scratch; the model wants {', '.join(pairs)}. Weights of another depth, "
        "or of a project that is not known?"
    )


def tensors(content: Any, source: str | Path) -> Mapping[str, Tensor]:
    """Return `content` if it maps names to tensors. Errors: UserError."""
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"{source}: holds {type(content).__name__}, not a mapping of names to tensors"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{source}: not a plain mapping of names to tensors ({key!r:.60} is a "
                f"{type(value).__name__}); save the state_dict alone"
            )
    return content


def modern_state(state: Mapping[str, Tensor], config: object) -> dict[str, Tensor]:
    """Return `state` under the names that its model gives its tensors today.

    `config` is the run's that the state was stored with; a state without a known model keeps its
    names. The names of a moving average (torch's AveragedModel) begin with `module.`, and still do.
    """
    model = config.get("model") if isinstance(config, Mapping) else None
    target = model.get("_target_") if isinstance(model, Mapping) else None
    prefix = "module." if "n_averaged" in state else ""
    names = modern_parameters(str(target), [key.removeprefix(prefix) for key in state])
    renamed = {}
    for key, value in state.items():
        bare = key.removeprefix(prefix)
        renamed[key.removesuffix(bare) + names[bare]] = value
    return renamed
