"""Stored examples: run folders as they were before the redesign, and the numbers they must give.

    python tests/golden/stored.py write|compare [NAME...]

tests/golden/stored/NAME.json holds a run's config.yaml as text, and of its checkpoint of step 5 the
manifest's meta and every file with its tensors left out: old names, dtypes and shapes stand for
them. `old_run` makes the run folder again by code of its own, so that the format stays what it was,
and fills each tensor by a formula of its name (`filling`): no weights are committed. On it
`segeval` must give its numbers, `segpredict` its files, `segtrain resume=` the losses of steps 6
and 7.

The formula is no trained network, but its predictions are of several classes, and some objects are
found: `write` refuses an example of which that is not so (`meaningful`).

Same machine type and version of torch: numbers must be equal to the bit. Elsewhere: losses to 1e-6
relative, as in `runs`, of the resumed run only of its first step; of other numbers only the names.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import done, load
from golden import runs

STORED = Path(__file__).resolve().parent / "stored"
RUN = "{run}"  # in a stored protocol: the run folder
STEP = 5  # of the stored checkpoint
STEPS = 7  # where a resumed run ends
SHOWN = ("val_0.png", "val_3.png")  # generated images that are predicted
LEAST = 0.02  # that the score of an example must reach, lest it compare nothing
FORMAT = 1

MORE = [f"train.steps={STEPS}", "train.save_every=5", "train.keep=5"]
LARGER = ["dataset.val=3"]
SLIDE = [
    "inference=slide",
    "inference.window=[48,48]",
    "inference.scales=[0.75,1.0]",
    "inference.crf={_target_: segtrain.inference.crf.DenseCRF, iterations: 3}",
]
# Of the model before the point, with these settings beside those of its golden run.
EXAMPLES: dict[str, list[str]] = {
    "deeplabv3plus_r18.ema": LARGER,
    "unet_32": LARGER,
    "encnet_r18": LARGER,
    "parsenet_vgg11": LARGER,
    "pspnet_r18": [*LARGER, *SLIDE, "log.tensorboard=true", "log.images=1", "train.clip=10.0"],
    "deeplab_r18": [
        *LARGER,
        "inference=multi_scale",
        "train.monitor=loss",
        "train.monitor_mode=min",
    ],
    # masks of noise: at a low threshold they fill their boxes, some of which are right
    "mask_rcnn_r18": [
        "inference.score=0.01",
        "inference.threshold=0.1",
        "inference.flip=true",
        "inference.scales=[1.0,1.5]",
    ],
    "fpn_r18": [],
}


# ---------------------------------------------------------------------- without tensors


def outline(value: Any) -> Any:
    """A checkpoint's entry as JSON: dtype and shape for each tensor, all else with its kind."""
    if isinstance(value, Tensor):
        shape = "x".join(map(str, value.shape)) or "scalar"
        return f"{str(value.dtype).removeprefix('torch.')} {shape}"
    if isinstance(value, Mapping):
        kind = "ordered" if isinstance(value, OrderedDict) else "dict"
        numbered = all(isinstance(key, int) for key in value) and bool(value)
        items = {str(key): outline(item) for key, item in value.items()}
        return {f"{kind}, numbered" if numbered else kind: items}
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(item, (int, float)) for item in value)
        text = json.dumps(value) if plain else [outline(item) for item in value]
        return {type(value).__name__: text}
    return {"plain": value}


def inked(drawn: Any, name: str) -> Any:
    """The entry of an outline, its tensors filled by their full names."""
    if isinstance(drawn, str):
        return filling(name, drawn)
    ((kind, content),) = drawn.items()
    if kind == "plain":
        return content
    if kind in ("list", "tuple"):
        if isinstance(content, str):
            items = json.loads(content)
        else:
            items = [inked(item, f"{name}.{k}") for k, item in enumerate(content)]
        return tuple(items) if kind == "tuple" else items
    made = OrderedDict() if kind.startswith("ordered") else {}
    for key, item in content.items():
        made[int(key) if kind.endswith("numbered") else key] = inked(item, f"{name}.{key}")
    return made


def filling(name: str, description: str) -> Tensor:
    """The tensor of a name: a function of the name and of nothing else, the same on every machine.

    Uniform numbers from raw bits of PCG64, with the spread that each kind needs for a signal to
    reach the end: weights by their fan-in, scales of norms near 1, variances positive, states of
    the optimiser small. The weights of one output add up to about nothing, lest one class win
    everywhere.
    """
    dtype, text = description.split()
    shape = () if text == "scalar" else tuple(int(side) for side in text.split("x"))
    if dtype == "int64" or name.endswith((".step", "n_averaged")):
        return torch.full(shape, STEP, dtype=getattr(torch, dtype))
    assert dtype == "float32", f"{name}: no rule for {dtype}"
    seed = int.from_bytes(hashlib.sha256(name.removeprefix("ema.module.").encode()).digest()[:8])
    raw = np.random.PCG64(seed).random_raw(math.prod(shape))
    whole = (np.asarray(raw) >> np.uint64(40)).astype(np.int64) - 2**23
    if len(shape) > 1:
        rows = whole.reshape(shape[0], -1)
        whole = rows - rows.sum(1, keepdims=True) // rows.shape[1]
    even = whole.reshape(shape) / 2.0**23  # from -1 to 1; sums of whole numbers are exact
    last = name.rpartition(".")[2]
    if "exp_avg_sq" in last:
        values = 1e-6 * (1.5 + even)
    elif last in ("exp_avg", "momentum_buffer"):
        values = 1e-3 * even
    elif last == "running_var":
        values = 1 + 0.5 * even
    elif len(shape) > 1:
        values = even * math.sqrt(6 * shape[0] / math.prod(shape))
    elif "scale" in last:  # behind an L2 norm
        values = 10 + 2 * even
    elif last == "weight":
        values = 1 + 0.2 * even
    else:
        values = 0.05 * even
    return torch.from_numpy(np.asarray(values, np.float32))


# ---------------------------------------------------------------------- the old run folder


def old_run(example: Mapping[str, Any], folder: Path, data: Path) -> Path:
    """Write the run folder of an example as segtrain wrote it then, with tensors by formula."""
    text = "\n".join(example["config.yaml"]) + "\n"
    place = folder / "checkpoints" / f"step_{STEP:08d}"
    place.mkdir(parents=True)
    (folder / "config.yaml").write_text(text.replace(runs.DATA, str(data)))
    files: dict[str, dict[str, Any]] = {}
    for name, drawn in example["files"].items():
        path = place / name
        torch.save(inked(drawn, name.removesuffix(".pt")), path)
        content = path.read_bytes()
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    meta = runs.filled(example["meta"], runs.DATA, str(data))
    body = {"format": FORMAT, "step": STEP, "meta": meta, "files": files}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True, indent=1).encode()).hexdigest()
    manifest = json.dumps({**body, "seal": seal}, sort_keys=True, indent=1)
    (place / "manifest.json").write_text(manifest)
    return folder


def numbers_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """What `segeval` and `segtrain resume=` give on the old run folder of an example."""
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        data = Path(temporary) / "data"
        runs.write_coco(data)
        folder = old_run(example, Path(temporary) / "run", data)
        threads = torch.get_num_threads()
        try:
            done("segeval", f"checkpoint={folder}", "eval.worst=0")
            (results,) = (folder / "eval").glob("*/metrics.json")
            metrics = json.loads(results.read_text())
            confusion = results.with_name("confusion.json")
            predicted = pixels_of(confusion) if confusion.exists() else None
            files = predictions(folder, data)
            done("segtrain", f"resume={folder}")
        finally:
            torch.set_num_threads(threads)
        protocol = runs.filled(metrics.pop("protocol"), str(folder), RUN)
        return {
            "folder": results.parent.name,
            "protocol": runs.filled(protocol, str(data), runs.DATA),
            "numbers": {name: runs.written(value) for name, value in metrics.items()},
            "predicted": predicted,
            "predictions": files,
            "continued": runs.numbers_of(folder),
        }


def predictions(folder: Path, data: Path) -> dict[str, str]:
    """The hash of what `segpredict` writes of each generated image: a score can hide a pixel.

    Label maps by their pixels, objects by the text of their file.
    """
    source = folder.parent / "input"
    source.mkdir()
    for place in SHOWN:
        shutil.copy(data / "images" / place, source)
    output = folder.parent / "output"
    done("segpredict", f"checkpoint={folder}", f"input={source}", f"output={output}")
    found: dict[str, str] = {}
    for path in sorted(output.glob("[!.]*")):
        if not path.stem.endswith("_overlay"):
            content = path.read_bytes() if path.suffix == ".json" else load(path).tobytes()
            found[path.name] = hashlib.sha256(content).hexdigest()[: runs.DIGITS]
    assert len(found) == len(SHOWN), f"segpredict wrote {sorted(found)}"
    return found


def pixels_of(confusion: Path) -> list[int]:
    """How many pixels were given each class."""
    counts = json.loads(confusion.read_text())["counts"]
    return [sum(row[k] for row in counts) for k in range(len(counts[0]))]


# ---------------------------------------------------------------------- recording and comparing


def file_of(name: str) -> Path:
    """Where an example lies."""
    return STORED / f"{name}.json"


def stored(name: str) -> dict[str, Any]:
    """An example."""
    return json.loads(file_of(name).read_text())


def recorded(name: str) -> dict[str, Any]:
    """A new example: a real run of today's code, whose tensors are then left out."""
    config = runs.composed([*runs.overrides_of(name), *MORE, *EXAMPLES[name]])
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        place = runs.run(name, config, Path(temporary))
        checkpoint = place / "checkpoints" / f"step_{STEP:08d}"
        meta = json.loads((checkpoint / "manifest.json").read_text())["meta"]
        files: dict[str, Any] = {}
        for path in sorted(checkpoint.glob("*.pt")):
            files[path.name] = outline(torch.load(path, weights_only=True))
        meta = runs.filled(meta, str(Path(temporary) / "data"), runs.DATA)
    example = {
        "environment": runs.environment(),
        "config.yaml": yaml_of(config).splitlines(),
        "meta": meta,
        "files": files,
    }
    return example | {"results": numbers_of(example)}


def yaml_of(config: Mapping[str, Any]) -> str:
    """A config as segtrain writes it into a run folder. Only `write` needs it."""
    from segtrain.config.files import to_yaml

    return to_yaml(config)


def meaningful(example: Mapping[str, Any]) -> str:
    """How much an example's predictions say. Errors: AssertionError where that is nothing."""
    results = example["results"]
    numbers = {key: float.fromhex(value) for key, value in results["numbers"].items() if value}
    if results["predicted"] is not None:
        classes = sum(count > 0 for count in results["predicted"])
        assert classes > 2, f"only {classes} classes are predicted"
        assert numbers["mIoU"] > LEAST, f"mIoU is {numbers['mIoU']}"
        return f"mIoU {numbers['mIoU']:.3f}, {classes} classes predicted"
    found = {key: value for key, value in numbers.items() if key.startswith("segm/A") and value > 0}
    assert found, f"no object is found: {numbers}"
    return ", ".join(f"{key} {value:.3f}" for key, value in found.items())


def write(name: str) -> None:
    """Record an example, or measure one that is there again."""
    if file_of(name).exists():
        example = stored(name)
        example |= {"environment": runs.environment(), "results": numbers_of(example)}
    else:
        example = recorded(name)
    print(f"    {meaningful(example)}")
    runs.save(file_of(name), example)


def differences(name: str) -> list[str]:
    """What an example gives otherwise than it did; [] where nothing."""
    example = stored(name)
    exact = runs.comparable(example)
    old = example["results"]
    new = numbers_of(example)
    apart = runs.numbers_apart({"segeval": old["numbers"]}, {"segeval": new["numbers"]}, exact)
    went = [results["continued"] for results in (old, new)]
    if not exact:
        went = [runs.early(numbers, runs.EARLY) for numbers in went]
    apart += runs.numbers_apart(*went, exact)
    parts = ("folder", "protocol", "predicted", "predictions") if exact else ("folder", "protocol")
    for part in parts:
        apart += [f"{part}: {line}" for line in told(old[part], new[part])]
    return apart


def told(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from told(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} then {old!r}, now {new!r}"


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    sys.exit(runs.command(list(EXAMPLES), write, differences))
