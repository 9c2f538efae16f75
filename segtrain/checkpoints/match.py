"""Fit loaded tensors into a model: all or nothing, or what fits.

Classifiers can be matched class by class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segtrain.config.old_names import modern_parameters
from segtrain.errors import UserError

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

    @property
    def exact(self) -> bool:
        """Whether keys and shapes are the same."""
        return not (self.reshaped or self.new or self.unused or self.rows)

    def parts(self) -> dict[str, tuple[int, int]]:
        """Return how many tensors of each part of the model ("backbone") are loaded, of how many.

        A classifier that takes some of its classes counts as loaded.
        """
        taken = [*self.loaded, *self.rows]
        total = Counter(map(part_of, [*taken, *self.reshaped, *self.new]))
        loaded = Counter(map(part_of, taken))
        return {part: (loaded[part], count) for part, count in total.items()}

    def holds(self, part: str) -> bool:
        """Tell whether most tensors of a part of the model come from the file."""
        loaded, total = self.parts().get(part, (0, 0))
        return 2 * loaded > total

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
        return "\n  ".join([count, *parts, *rows])


def part_of(key: str) -> str:
    """Return the part of a model that a tensor belongs to: "backbone" of "backbone.stem.0.bias"."""
    return key.partition(".")[0]


def compare(wanted: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> Match:
    """Sort the keys of a model's state and of a loaded one by whether they fit.

    They stay in the model's order.
    """
    both = [key for key in wanted if key in loaded]
    shapes = {key: (tuple(wanted[key].shape), tuple(loaded[key].shape)) for key in both}
    return Match(
        loaded=[key for key in both if shapes[key][0] == shapes[key][1]],
        reshaped={key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
        new=[key for key in wanted if key not in loaded],
        unused=[key for key in loaded if key not in wanted],
    )


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of `state` or, with a UserError that holds the table of differences, nothing."""
    match = compare(model.state_dict(), tensors(state, source))
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
) -> tuple[dict[str, Tensor], Match]:
    """Return a full state for the model: `loaded` where it fits, the model's own values elsewhere.

    A tensor whose shapes differ in dimension 0 only, `len(loaded_names)` there and `len(names)`
    here, is a classifier: its rows are copied class by class by name, and classes without a
    namesake keep the model's rows. Equal numbers of classes cannot be told from channels, so such
    tensors are taken as they are. Errors: UserError when nothing fits.
    """
    match = compare(model_state, loaded)
    state = {key: value.detach().clone() for key, value in model_state.items()}
    for key in match.loaded:
        state[key].copy_(loaded[key])
    pairs = [(i, loaded_names.index(name)) for i, name in enumerate(names) if name in loaded_names]
    rows = {}
    for key, (mine, theirs) in match.reshaped.items():
        if mine[:1] == (len(names),) and theirs == (len(loaded_names), *mine[1:]) and pairs:
            for here, there in pairs:
                state[key][here] = loaded[key][there].to(state[key])
            rows[key] = (len(pairs), len(names))
    if not match.loaded and not rows:
        theirs = next(iter(loaded), "none")
        ours = next(iter(model_state), "none")
        raise UserError(
            f"none of the {len(loaded)} loaded tensors fits the model; first keys: the file has "
            f"{theirs!r}, the model {ours!r}"
        )
    reshaped = {key: pair for key, pair in match.reshaped.items() if key not in rows}
    return state, Match(match.loaded, reshaped, match.new, match.unused, rows)


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
