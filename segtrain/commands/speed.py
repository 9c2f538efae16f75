"""How fast a checkpoint is: `segeval eval.speed=true`.

A row each for the whole prediction of an image (from its bytes to its labels or objects, by the
inference of the measurement), and for the network alone at batches of 1 and n, at the size that the
inference shows it first. Of a detector the network is what finds boxes; masks are made for those
that remain, and belong to the prediction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.logs.progress import Progress
from segtrain.runtime.exhausted import exhausted
from segtrain.runtime.files import replace_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from segtrain import api
    from segtrain.contracts import Dataset
    from segtrain.structures.samples import Batch

# By hand: the first passes choose algorithms and allocate, and the third is as any other.
WARM_UP = 3


def speed_of(
    loaded: api.Loaded, images: Dataset, batch: int, repetitions: int, progress: bool
) -> dict[str, Any]:
    """Return the speed of a checkpoint on the first image of `images`, for speed.json.

    `batch` is the larger one. Times are in ms, of a device that was waited for; memory is in MiB,
    the GPU's where there is one, else the most that the process held. A batch that does not fit is
    said under `left_out`.
    """
    import torch

    from segtrain.structures.samples import Batch

    image = images[0].image[:, :]
    shown = shown_first(loaded, image, images.ids[0])
    passes: dict[tuple[str, int], Callable[[], object]] = {
        ("prediction", 1): lambda: loaded(image, images.ids[0])
    }
    for count in dict.fromkeys((1, batch)):
        several = Batch(
            shown.expand(count, -1, -1, -1).contiguous(),
            torch.tensor([shown.shape[2:]] * count, device=loaded.device),
            [images.ids[0]] * count,
        )
        passes["network", count] = lambda several=several: _network(loaded, several)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    every = len(passes) * (WARM_UP + repetitions)
    with Progress(every, "measuring speed", progress, unit="pass") as bar:
        for number, ((what, count), work) in enumerate(passes.items()):
            done = number * (WARM_UP + repetitions)
            on_gpu = loaded.device.type == "cuda"
            try:
                measured = _measured(
                    work, count, repetitions, lambda n, d=done: bar.to(d + n), on_gpu
                )
            except Exception as error:
                if not exhausted(error):
                    raise
                left_out.append(f"{what}, batch {count}: does not fit in memory")
                continue
            rows.append({"what": what, "batch": count, **measured})
    gpu = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None
    return {
        "device": gpu or loaded.device.type,
        "threads": torch.get_num_threads(),
        "precision": loaded.run.train.precision,
        "image": images.ids[0],
        "height": image.shape[0],
        "width": image.shape[1],
        "network_height": shown.shape[2],
        "network_width": shown.shape[3],
        "warm_up": WARM_UP,
        "repetitions": repetitions,
        "measured": rows,
        "left_out": left_out,
    }


def shown_first(loaded: api.Loaded, image: np.ndarray, sample_id: str) -> Tensor:
    """Return what the inference shows the network first of an image, (1, 3, H, W) uint8.

    A network of somebody else, whose input is normalised by no module, is shown the image itself.
    """
    import numpy as np
    import torch

    seen: list[Tensor] = []
    modules = dict(loaded.network.named_children())
    if "preprocess" in modules:
        hook = modules["preprocess"].register_forward_pre_hook(
            lambda _, given: seen.append(given[0])
        )
        try:
            loaded(image, sample_id)
        finally:
            hook.remove()
    own = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(loaded.device)
    return seen[0][:1] if seen and seen[0].dtype == torch.uint8 else own


def _network(loaded: api.Loaded, batch: Batch) -> object:
    """Let the network compute what it does of every image."""
    import torch

    with torch.inference_mode(), loaded.precision:
        return loaded.predictor.network_output(batch)


def _measured(
    work: Callable[[], object],
    batch: int,
    repetitions: int,
    advance: Callable[[int], None],
    on_gpu: bool,
) -> dict[str, float | None]:
    """Return times, rate and memory of `work`, which computes `batch` images."""
    import numpy as np

    from segtrain.logs.summary import forget_peak_memory, peak_gpu_memory, peak_memory

    for count in range(WARM_UP):
        work()
        advance(count + 1)
    _wait(on_gpu)
    reset = forget_peak_memory()
    times = []
    for count in range(repetitions):
        begun = time.perf_counter()
        work()
        _wait(on_gpu)
        times.append(1000 * (time.perf_counter() - begun))
        advance(WARM_UP + count + 1)
    memory = peak_gpu_memory() if on_gpu else peak_memory() if reset else None
    return {
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
        "images_per_second": 1000 * batch * repetitions / sum(times),
        "peak_memory_mib": memory,
    }


def _wait(on_gpu: bool) -> None:
    """Wait for a GPU: it computes on after the host is told that it has begun."""
    import torch

    if on_gpu:
        torch.cuda.synchronize()


def write_speed(folder: Path, speed: dict[str, Any]) -> None:
    """Write speed.json and print it as a table. Errors: OSError."""
    replace_file(folder / "speed.json", (json.dumps(speed, indent=2) + "\n").encode())
    print(table(speed))


def table(speed: dict[str, Any]) -> str:
    """Return a speed as text: what was measured on what, and a line for each row."""
    threads = f"{speed['threads']} thread{'s' * (speed['threads'] > 1)}"
    head = (
        f"speed on {speed['device']}, {threads}, {speed['precision']}: {speed['image']} of "
        f"{speed['height']} x {speed['width']} pixels, of which the network sees "
        f"{speed['network_height']} x {speed['network_width']}; "
        f"{speed['repetitions']} times after {speed['warm_up']} to warm up"
    )
    rows: list[Sequence[str]] = [("", "batch", "p50 ms", "p95 ms", "images/s", "peak MiB")]
    for row in speed["measured"]:
        memory = row["peak_memory_mib"]
        rows.append(
            (
                row["what"],
                str(row["batch"]),
                f"{row['p50_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                f"{row['images_per_second']:.1f}",
                "-" if memory is None else f"{memory:,}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([head, *lines, *speed["left_out"]])
