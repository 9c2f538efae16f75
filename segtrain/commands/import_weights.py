"""`segtrain import=FILE`: make a run of a file of published weights."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.commands.arguments import take
from segtrain.config import settings, trust
from segtrain.config.compose import check, compose_config, plain_run
from segtrain.config.files import masked_container, stored_text
from segtrain.errors import UserError, printable
from segtrain.runtime.run_folder import NewRun

if TYPE_CHECKING:
    from segtrain.checkpoints.match import Match
    from segtrain.weights.families import Recognised
    from segtrain.weights.family import Published


def run(words: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> None:
    """Do what `segtrain import=FILE dataset=NAME [settings]` asks for.

    Family and model are found by the file; what is typed counts more. Errors: UserError where the
    file is not known, or does not fit in both directions; then nothing is left behind.
    """
    taken, overrides = take(words, "import", "table")
    table = taken.get("table", "modules")
    if table not in ("modules", "whole"):
        raise UserError(f"table={table}: modules, or whole for every tensor")
    typed = {settings.read(word).key for word in overrides}
    if not typed & {"dataset", "experiment"}:
        raise UserError(
            "import=: name the data set whose classes the weights have, import=FILE dataset=NAME"
        )

    from segtrain.weights.families import read_published  # only now: it imports torch

    file = taken["import"]
    recognised = read_published(file)
    published = recognised.published
    if not published.model and "model" not in typed:
        raise UserError(
            f"{file}: holds a backbone of {recognised.family.name}, no segmentation network; "
            "start from it with model.weights=FILE"
        )
    words = found(published, overrides, config_dirs)
    cfg, folder = compose_config([*words, *overrides], config_dirs)
    conf = check(cfg)
    plain = masked_container(cfg)

    from segtrain.engine import imported

    dataset = imported.dataset_of(conf)
    classes = dataset.labels.num_classes
    if published.num_classes not in (None, classes):
        raise UserError(
            f"{file}: has {published.num_classes} classes, the data set {dataset.labels.name} has "
            f"{classes}; name the data set that it was trained on"
        )
    network = imported.network_of(conf, dataset)
    state = imported.by_names(network, dataset, recognised.state, published)
    fits = imported.load_strictly(network, state, file, table == "whole")
    new = NewRun(stored_text(plain), (*words, *overrides), str(Path.cwd()))
    source = {"family": recognised.family.name, "file": Path(file).name}
    imported.write(folder, new, plain, network, dataset, source)
    print(told(file, recognised, words, fits, table == "whole"))
    if state is not recognised.state:
        print(
            f"  classes: put into the order of {dataset.labels.name}; the file's were taken to be "
            f"in that of the release, which is the table `{published.classes}`"
        )
    print(f"run {folder}")
    print(f"measure it     segeval checkpoint={shlex.quote(str(folder))}")
    print(f"train from it  {trust.command(f'train.init={folder}', 'key=value')}")


def found(
    published: Published, overrides: Sequence[str], config_dirs: Sequence[str | Path]
) -> list[str]:
    """Return the settings that follow from a file, but for what was typed."""
    typed = {settings.read(word).key: settings.read(word).text for word in overrides}
    model = typed.get("model", published.model)
    start = [f"model={model}"] if "model" not in typed else []
    if "recipe" not in typed:
        start.append("recipe=null")  # a file is measured as its authors did, not as it was trained
    cfg, _ = compose_config([*start, *overrides], config_dirs)
    known = plain_run(cfg)["model"]
    if "input" not in known:
        raise UserError(
            f"model={model}: takes no `input`, and these weights read {published.input}; give its "
            "constructor an argument `input` as the models here have it"
        )
    wanted: dict[str, Any] = {"input": published.input, "weights": None}
    if model == published.model:
        wanted |= published.arguments
    words = start + [f"model.{k}={_text(v)}" for k, v in wanted.items() if k in known]
    words += published.measured if "inference" not in typed else []
    return [word for word in words if settings.read(word).key not in typed]


def _text(value: Any) -> str:
    """Return a value as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def told(path: str, recognised: Recognised, words: Sequence[str], fits: Match, whole: bool) -> str:
    """Say what was found in a file, and where its tensors went."""
    file = recognised.file
    lines = [f"{path}: {recognised.family.name} ({file.format}), {len(file.values)} tensors"]
    if not recognised.family.confirmed:
        lines.append("layout not confirmed: no file of this family was at hand when it was written")
    lines += recognised.published.notes
    lines.append(f"settings: {' '.join(words)}")
    lines += [f"  {part}: {n} of {count} tensors" for part, (n, count) in fits.parts().items()]
    reasons = Counter(recognised.left_out.values())
    if whole:
        lines += [f"  {key}" for key in fits.loaded]
        lines += [f"  left out: {key} ({why})" for key, why in recognised.left_out.items()]
    else:
        lines += [f"  left out: {count} ({why})" for why, count in reasons.items()]
    if file.not_run:
        lines.append(f"  not run: {', '.join(file.not_run)}")
    return "\n".join(map(printable, lines))  # keys are a stranger's
