"""Do what a user types, one file per command.

May import: errors, api, contracts, structures, config, runtime, weights, checkpoints, logs, data,
visualization, benchmarks, engine.
"""
