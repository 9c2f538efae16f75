"""Bring samples from files to batches, knowing no benchmark.

May import: errors, rng, contracts, structures, runtime.
"""
