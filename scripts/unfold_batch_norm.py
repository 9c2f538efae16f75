"""Put statistics back into batch norms that were folded, without changing what a network computes.

Run:  python scripts/unfold_batch_norm.py mobilenet_v2.safetensors data/images mobilenet_v2.pth

Files made for phones hold networks whose batch norms were folded into the convolutions. Fine-tuning
from one needs statistics, or norms that stay frozen: segtrain/engine/batch_norm.py says why.
`segtrain train.unfold_batches=100` estimates them before the first step, for any network. This
script makes a file of them, for another framework that is compared with: it reads a classifier of
torchvision's names, estimates each layer's mean and variance on the images of a folder, and writes
a state dict of the same names and the same outputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from segtrain.data.images import read_image
from segtrain.engine.batch_norm import folded, unfold
from segtrain.errors import UserError
from segtrain.layers.preprocess import preprocess
from segtrain.runtime.distributed import World
from segtrain.weights.formats import read_weights

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("file", type=Path, help="weights by torchvision's names")
parser.add_argument("images", type=Path, help="folder of images like those that will be trained on")
parser.add_argument("out", type=Path, help="file of a state dict that is written, .pth")
parser.add_argument("--count", type=int, default=200, help="images that are read, evenly spread")
parser.add_argument("--model", default="mobilenet_v2", help="torchvision's name of the classifier")
SUFFIXES = (".jpg", ".jpeg", ".png")
TOLERANCE = 1e-4  # of the outputs, relative to the largest


def pictures(folder: Path, count: int) -> list[Path]:
    """Return up to `count` images of a folder, evenly spread. Errors: UserError."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found or count < 1:
        raise UserError(f"{folder}: {len(found)} images ({', '.join(SUFFIXES)}), --count={count}")
    return found[:: max(len(found) // count, 1)][:count]


def inputs(paths: Sequence[Path]) -> Iterator[Tensor]:
    """Yield what a torchvision classifier reads (1, 3, H, W) of each image at its own size."""
    normalised = preprocess("imagenet")
    for path in paths:
        pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]
        yield normalised(pixels, torch.tensor([pixels.shape[-2:]]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file, and say how much its outputs differ. Errors: UserError."""
    settings = parser.parse_args(arguments)
    paths = pictures(settings.images, settings.count)
    state = read_weights(settings.file).values
    if (head := state.get("classifier.1.weight", state.get("fc.weight"))) is None:
        raise UserError(f"{settings.file}: has no classifier by torchvision's names")
    network = torchvision.models.get_model(settings.model, num_classes=len(head)).eval()
    network.load_state_dict(dict(state))
    if not folded(network):
        raise UserError(f"{settings.file}: its batch norms hold statistics; nothing to do")
    with torch.no_grad():
        before = network(next(inputs(paths)))
        norms = unfold(network, inputs(paths), World())
        difference = float((network(next(inputs(paths))) - before).abs().max() / before.abs().max())
    if not difference < TOLERANCE:
        raise UserError(f"{settings.out}: not written, outputs would differ by {difference:.1e}")
    torch.save(network.state_dict(), settings.out)
    print(
        f"{settings.out}: {norms} batch norms, statistics of {len(paths)} images; the outputs of "
        f"{paths[0].name} differ by {difference:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
