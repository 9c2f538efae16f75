"""What the files of FCN's authors say about rates and decay: `TABLES` is experiment -> table."""

from __future__ import annotations

# voc-fcn32s/net.py, conv_relu: weights at 1x with decay, biases at 2x without; so are the score
# layers. The upsampling is held (lr_mult 0). solver.prototxt: weight_decay 0.0005.
HEAVY = {
    r".*:Conv2d\.weight": (1.0, 0.0005),
    r".*:Conv2d\.bias": (2.0, 0.0),
}

TABLES = {
    "fcn32s_voc": HEAVY,
    "fcn16s_voc": HEAVY,
    "fcn8s_voc": HEAVY,
    "fcn8s_once_voc": HEAVY,
}
