"""What the files of FCN's authors say about rates and decay: `TABLES` is experiment -> table.

Source: github.com/shelhamer/fcn.berkeleyvision.org. The deconvolutions are held there (lr_mult 0);
here they are no parameters then.
"""

from __future__ import annotations

from published_rates import Argued

DECAY = 0.0005  # weight_decay of every solver.prototxt

# net.py of voc-fcn32s, 16s, 8s, 8s-atonce and of the three of pascalcontext: the convolutions and
# the score layers alike.
HEAVY = {
    r".*:Conv2d\.weight": (1.0, DECAY),
    r".*:Conv2d\.bias": (2.0, 0.0),
}

# The conference paper, section 4.3: decay of 5^-4 or 2^-4 as it prints them, biases at twice the
# rate, intermediate deconvolutions learned. What they decay is not said: as in the release.
PAPER_SKIPS = HEAVY | {r"head\.up\.\w+:Bilinear\.weight": (1.0, DECAY)}

# voc-fcn-alexnet/net.py has no `param` but for the score layer, so Caffe's defaults.
ALEXNET = {
    r".*:Conv2d\.weight": (1.0, DECAY),
    r"(?!head\.score).*:Conv2d\.bias": (1.0, DECAY),
    # 21 numbers, for which a rate and a decay of their own would be two more settings.
    r"head\.score.*:Conv2d\.bias": Argued((2.0, 0.0), ours=(1.0, DECAY)),
}

TABLES = {
    "fcn32s_voc": HEAVY,
    "fcn16s_voc": HEAVY,
    "fcn8s_voc": HEAVY,
    "fcn8s_once_voc": HEAVY,
    "fcn32s_context": HEAVY,
    "fcn16s_context": HEAVY,
    "fcn8s_context": HEAVY,
    "fcn32s_voc_paper": HEAVY,
    "fcn16s_voc_paper": PAPER_SKIPS,
    "fcn8s_voc_paper": PAPER_SKIPS,
    "fcn_alexnet_voc": ALEXNET,
}
