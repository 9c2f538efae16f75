"""What `segdata prepare` does beside the cache: a benchmark's files are fetched and converted."""

from __future__ import annotations

from pathlib import Path

from segtrain.benchmarks import cityscapes, coco, context, voc
from segtrain.config.schema import RunConf


def prepare(run: RunConf) -> bool:
    """Bring the files of `run.dataset` into its root; return whether nothing is missing any more.

    Errors: UserError where the network fails, DataError for wrong files, DiskError.
    """
    settings = run.dataset
    progress = run.log.progress
    module, name = settings["_target_"].split(".")[-2:]
    root = Path(settings.get("root", "")).expanduser()
    if module == "voc":
        return voc.prepare(root, settings.get("sbd"), progress)
    if module == "cityscapes":
        return cityscapes.prepare(root, progress)
    if module == "context":
        return context.prepare(root, settings.get("masks"), progress)
    # With `annotations` it is somebody's own file in COCO's form.
    if module.startswith("coco") and settings.get("annotations") is None:
        with_stuff = "stuff" in f"{module} {name}".lower()
        return coco.prepare(root, with_stuff, progress)
    print(f"{settings['_target_']}: nothing to fetch or to convert")
    return True
