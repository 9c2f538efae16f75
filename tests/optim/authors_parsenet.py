"""ParseNet: neither a solver nor a network of the authors was found, so the rows are ours."""

from __future__ import annotations

OURS = {
    r".*:Conv2d\.weight": (1.0, 0.0005),
    r".*:Conv2d\.bias": (2.0, 0.0),
    r".*:L2Norm\.scale": (1.0, 0.0),
}

TABLES = {"parsenet_voc": OURS, "parsenet_context": OURS}
