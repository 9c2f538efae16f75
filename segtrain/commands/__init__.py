"""Do what a user types, one file per command.

May import: errors, rng, api, contracts, structures, config, runtime, weights, checkpoints, logs,
data, visualization, benchmarks, engine.
"""
