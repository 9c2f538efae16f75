"""Train and evaluate. Read `train.py` first.

May import: errors, rng, contracts, structures, config, runtime, checkpoints, logs, optim, data,
visualization.
"""
