"""U-Net: the paper (section 3) says of the optimiser SGD and momentum 0.99, the rows are ours."""

from __future__ import annotations

TABLES = {"unet_em": {r".*": (1.0, 0.0)}}
