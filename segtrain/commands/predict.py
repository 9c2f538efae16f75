"""`segpredict`: write what a network sees in a user's images."""

from __future__ import annotations

import sys

from segtrain.commands.arguments import take
from segtrain.commands.evaluate import chosen
from segtrain.commands.flags import take_config_dirs
from segtrain.config.compose import with_overrides
from segtrain.errors import UserError, printable

HELP = """segpredict writes a label map (palette PNG) or instances (COCO results JSON), and an \
overlay, for every image.

  segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [eval.flip=true ...]
  segpredict checkpoint=RUN input=DIR output=DIR inference=slide
  segpredict checkpoint=RUN input=DIR output=DIR eval.submission=DIR
                                              also what the benchmark's server takes
  segpredict checkpoint=RUN input=DIR output=DIR probabilities=true
                                              also <image>.npy, the probabilities (K, H, W) of the
                                              classes as 16-bit floats
  segpredict checkpoint=RUN input=DIR output=DIR annotations=FILE.json
                                              instances under the ids that a COCO file gives the
                                              images by name; without one the id is the name; on
                                              COCO itself a name of twelve digits is its number"""

ARGUMENTS = ("checkpoint", "input", "output", "annotations", "probabilities")


def run(arguments: list[str]) -> None:
    """Predict every image of `input=FILE_OR_DIR` with `checkpoint=`, and write to `output=DIR`."""
    config_dirs, words = take_config_dirs("segpredict", arguments)
    taken, overrides = take(words, *ARGUMENTS)
    soft = taken.get("probabilities", "false").lower()
    if soft not in ("true", "false"):
        raise UserError(f"probabilities={taken['probabilities']}: true, or false")
    for name in ("checkpoint", "input", "output"):
        if name not in taken:
            raise UserError(
                f"{name}=... is missing; "
                "segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR"
            )

    from segtrain import api
    from segtrain.runtime import distributed

    source = chosen(taken["checkpoint"], overrides)
    conf = with_overrides(api.stored_run(source), overrides, config_dirs)
    distributed.use_threads(conf.train.threads, 1)
    loaded = api.load(taken["checkpoint"], device=conf.train.device, run=conf, source=source)
    seen = api.predict_photos(
        loaded,
        taken["input"],
        taken["output"],
        annotations=taken.get("annotations"),
        probabilities=soft == "true",
    )
    if seen.left_out:
        print(f"left out: {seen.left_out}")
    print(f"{len(seen.files)} images; predictions and overlays in {taken['output']}")
    if seen.packed:
        print(seen.packed)
    if seen.undrawn:
        first = next(iter(seen.undrawn.items()))
        warning = f"segpredict: {len(seen.undrawn)} overlays not drawn ({first[0]}: {first[1]})"
        print(printable(warning), file=sys.stderr)
    for error in seen.unread.values():
        print(printable(str(error)), file=sys.stderr)
    seen.complain("they stand above")
