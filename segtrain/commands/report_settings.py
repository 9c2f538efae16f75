"""Put runs that differ only in the seed together, and rank what is left.

A setting is all runs of one config, whatever their seed and the places of their files. Its numbers
are means over its runs, with the deviation of a sample (n - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from segtrain.commands.report_runs import Run, mapping, number
from segtrain.config.headers import EXPERIMENT_KEYS, Header, read_header
from segtrain.config.places import is_place
from segtrain.config.recipes import FOLDER, names
from segtrain.errors import first_of, printable

SEED = "train.seed"
MAX_NAME = 60  # characters of a run's name in a line of text; chosen by hand
MAX_LISTED = 8  # runs that a note names
MAX_LABEL = 120  # characters of a setting's swept keys, before its run is named instead
# Runs are ranked among those that are judged by the same number on the same images.
CONTEST = ("dataset._target_", "dataset.val_split", "dataset.val", "dataset.classes")


class Spread(NamedTuple):
    """A number of several runs."""

    mean: float
    deviation: float | None  # of the sample; None for a single run
    n: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean and deviation of the values that are known; None for none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def clipped(name: str) -> str:
    """Return a name that fits into a line, its start and its end.

    A sweep names folders after all that was typed.
    """
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME // 2]}…{name[1 - MAX_NAME // 2 :]}"


def listed(runs: Sequence[Run]) -> str:
    """Return the names of runs, the first of them where there are many."""
    return first_of([clipped(run.name) for run in runs], MAX_LISTED)


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed and in places."""

    runs: list[Run]
    number: int = 0  # its place in the ranking, from 1; 0 where it is not ranked
    best: bool = False

    @property
    def counted(self) -> list[Run]:
        """Return the runs whose numbers are averaged.

        They are the complete ones; where none is, those that have begun.
        """
        complete = [run for run in self.runs if run.complete]
        return complete or [run for run in self.runs if run.begun]

    @property
    def complete(self) -> bool:
        """Whether one of its runs came to its end."""
        return any(run.complete for run in self.runs)

    @property
    def status(self) -> str:
        """Return the status of its runs, counted where they differ."""
        counts = Counter(run.status for run in self.runs)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    @property
    def metric(self) -> str:
        """Return the number by which it is judged."""
        return self.runs[0].metric

    @property
    def contest(self) -> tuple[Any, ...]:
        """Return what two settings must share to be ranked together."""
        config = self.runs[0].config
        return (self.metric, *(repr(config.get(key)) for key in CONTEST))

    def value(self, key: str) -> Any:
        """Return what a differing key is here: of the config, or of a group what was typed."""
        run = self.runs[0]
        return run.config[key] if key in run.config else run.typed.get(key)

    def spread(self, of: Callable[[Run], float | None]) -> Spread | None:
        """Return mean and deviation of one number of its runs."""
        return spread([of(run) for run in self.counted])

    @property
    def score(self) -> Spread | None:
        """Return the best value of the number by which it is judged."""
        return self.spread(lambda run: run.best()[1])

    @property
    def title(self) -> str:
        """Return a name for it: that of its run, or of the first one and how many there are."""
        more = len(self.runs) - 1
        return clipped(self.runs[0].name) + (f" (+ {more} seed{'s' * (more > 1)})" if more else "")


def settings_of(runs: Sequence[Run]) -> tuple[list[Setting], list[Run]]:
    """Return the settings, ranked, and the runs that have no number.

    The larger contest comes first; within one, complete settings before others, the best first.
    """
    by_config: dict[Any, list[Run]] = {}
    for run in runs:
        if run.begun:
            by_config.setdefault(_identity(run), []).append(run)
    groups = [Setting(members) for members in by_config.values()]
    sizes = Counter(group.contest for group in groups)
    contests = sorted(sizes, key=lambda contest: -sizes[contest])
    ranked: list[Setting] = []
    for contest in contests:
        members = [group for group in groups if group.contest == contest]
        members.sort(key=_order)
        for place, group in enumerate(members):
            first = place == 0 and len(members) > 1 and group.score is not None
            ranked.append(Setting(group.runs, len(ranked) + 1, first))
    return ranked, [run for run in runs if not run.begun]


def _identity(run: Run) -> Any:
    """Return what runs of one setting share; a run without a readable config is alone."""
    if not run.config:
        return run.name
    kept = {k: v for k, v in run.config.items() if k != SEED and not is_place(k)}
    return (run.metric, *sorted((key, repr(value)) for key, value in kept.items()))


def _order(setting: Setting) -> tuple[bool, bool, float]:
    score = setting.score
    if score is None:
        return (True, True, 0.0)
    return (False, not setting.complete, score.mean if setting.runs[0].minimised else -score.mean)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the config keys whose values differ between the runs whose config could be read."""
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def swept(settings: Sequence[Setting]) -> tuple[list[str], list[str]]:
    """Return the keys in which settings differ: those that somebody typed, and what follows.

    `model=fcn,pspnet` is typed; the keys of the config that it changes follow from it.
    """
    runs = [setting.runs[0] for setting in settings if setting.runs[0].config]
    keys = [key for key in differing(runs) if key != SEED and not is_place(key)]
    words = dict.fromkeys(key for run in runs for key in run.typed)
    groups = [
        key
        for key in words
        if not any(key in run.config for run in runs)
        and not key.startswith("hydra")
        and len({run.typed.get(key) for run in runs}) > 1
    ]
    # `metric` is a column already, the number by which a run is judged; its keys stand for it.
    typed = [key for key in words if (key in keys or key in groups) and key != "metric"]
    if "metric" in groups:
        typed += [key for key in keys if key.startswith("metric.") and key not in typed]
    return typed, [key for key in keys if key not in typed]


def label(setting: Setting, keys: Sequence[str]) -> str:
    """Return a short name of a setting: its swept keys, or that of its run."""
    values = ", ".join(f"{key}={setting.value(key)}" for key in keys[:4])
    return printable(values if keys and len(values) <= MAX_LABEL else setting.title)


def published(setting: Setting) -> Header | None:
    """Return the header of the recipe that its runs were trained by; None where there is none."""
    recipe = setting.runs[0].config.get("recipe")
    if recipe not in names():  # a stranger's config may hold any text
        return None
    return read_header(FOLDER / f"{recipe}.yaml", EXPERIMENT_KEYS)


def evaluation_of(run: Run, name: str) -> float | None:
    """Return the main number of one evaluation of a run; None where it was not made."""
    known = (e for e in run.evaluations if e.name == name)
    return next((e.main(run.metric) for e in known), None)


def evaluations(settings: Sequence[Setting]) -> list[str]:
    """Return the names of all evaluations of the runs, as they come."""
    every = (e for setting in settings for run in setting.counted for e in run.evaluations)
    return list(dict.fromkeys(e.name for e in every))


def gflops(run: Run) -> float | None:
    """Return the billions of FLOPs of one image, of the first evaluation that counted them."""
    counted = (number(evaluation.cost.get("flops")) for evaluation in run.evaluations)
    flops = next((flops for flops in counted if flops is not None), None)
    return None if flops is None else flops / 1e9


def latency(run: Run) -> float | None:
    """Return the ms that the prediction of an image takes, of the first evaluation that timed it.

    It is the median.
    """
    rows = [mapping(row) for e in run.evaluations for row in listed_in(e.speed.get("measured"))]
    times = [number(row.get("p50_ms")) for row in rows if row.get("what") == "prediction"]
    return next((time for time in times if time is not None), None)


def listed_in(value: object) -> list[Any]:
    """Return a list, [] for what is none: the file may be a stranger's."""
    return value if isinstance(value, list) else []


def footnotes(settings: Sequence[Setting]) -> list[str]:
    """Return what must be known to read the numbers, a line each.

    They are the protocol of each evaluation, that of the published numbers, and what makes numbers
    of the table less comparable than they look.
    """
    notes: list[str] = []
    for name in evaluations(settings):
        every = [
            e for s in settings for run in s.counted for e in run.evaluations if e.name == name
        ]
        protocols = list(dict.fromkeys(e.in_words() for e in every))
        if len(protocols) == 1:
            notes.append(f"eval {name}: {protocols[0]}")
        else:
            notes.append(f"eval {name}: NOT the same in all runs: " + " / ".join(protocols[:3]))
    headers = {h.name: h for h in map(published, settings) if h is not None}
    notes += [
        f"published ({name}, in percent): {h['Paper']}; {h['Split']}" for name, h in headers.items()
    ]
    measured = [e for setting in settings for run in setting.counted for e in run.evaluations]
    sizes = {
        f"{e.cost.get('height')} x {e.cost.get('width')} (eval {e.name})": None
        for e in measured
        if e.cost
    }
    if sizes:
        differ = ", which differ: GFLOPs are not comparable" if len(sizes) > 1 else ""
        notes.append(f"GFLOPs: two for a multiply-add, of an image of {' / '.join(sizes)}{differ}")
    machines = {
        f"{e.speed.get('device')} (threads: {e.speed.get('threads')}), {e.speed.get('precision')}, "
        f"{e.speed.get('height')} x {e.speed.get('width')} pixels": None
        for e in measured
        if e.speed
    }
    if machines:
        differ = ", which differ: ms/image is not comparable" if len(machines) > 1 else ""
        notes.append(f"ms/image: median of a whole prediction, on {' / '.join(machines)}{differ}")
    if len({setting.contest for setting in settings}) > 1:
        notes.append(
            "the runs are not all judged by the same number on the same images; each * is the best "
            "among those that are"
        )
    for setting in settings:
        seeds = Counter(repr(run.config.get(SEED)) for run in setting.counted if run.config)
        twice = [seed for seed, count in seeds.items() if count > 1]
        same = [run for run in setting.counted if repr(run.config.get(SEED)) in twice]
        if same:
            notes.append(
                f"{listed(same)}: the same config with the same seed {twice[0]}; their deviation "
                "is not one over seeds"
            )
    left_out = [run for setting in settings for run in setting.runs if run not in setting.counted]
    if left_out:
        notes.append(f"{listed(left_out)}: not complete, and left out of the mean")
    return notes


def verdict(settings: Sequence[Setting]) -> str | None:
    """Return which setting is best and by how much; None where there is nothing to choose."""
    best = next((setting for setting in settings if setting.best), None)
    if best is None or (score := best.score) is None:
        return None
    rivals = [s for s in settings if s.contest == best.contest and s is not best and s.score]
    if not rivals:
        return None
    rival = rivals[0].score
    assert rival is not None
    typed, others = swept(settings)
    what = ", ".join(f"{key}={best.value(key)}" for key in (typed or others)[:3]) or best.title
    text = (
        f"best: {what}, {best.metric} {score.mean:.4f}, "
        f"{abs(score.mean - rival.mean):.4f} from the next"
    )
    spreads = [number(s.deviation) for s in (score, rival)]
    known = [s for s in spreads if s is not None]
    if not known:
        return f"{text} (one seed each: how much a seed changes is not known)"
    if abs(score.mean - rival.mean) <= max(known):
        return f"{text}, which is within the deviation over seeds ({max(known):.4f})"
    return text
