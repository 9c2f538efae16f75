"""Train and evaluate. Read `train.py` first.

May import: errors, rng, contracts, structures, config, runtime, weights, checkpoints, logs, optim,
data, layers, visualization.
"""
