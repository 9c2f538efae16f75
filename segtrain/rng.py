"""Randomness as a function of position: nothing to save, nothing to restore. No torch here.

A stream is a word such as "order" or "augment"; a position is one or more integers such as
(epoch, index).
"""

from __future__ import annotations

import zlib

import numpy as np


def seed_for(seed: int, stream: str, *position: int) -> int:
    """Return a 32-bit seed that depends on all of (seed, stream, position) and on nothing else."""
    entropy = (seed, zlib.crc32(stream.encode()), *position)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def generator_for(seed: int, stream: str, *position: int) -> np.random.Generator:
    """Return a numpy generator seeded by (seed, stream, position)."""
    return np.random.default_rng(
        np.random.SeedSequence((seed, zlib.crc32(stream.encode()), *position))
    )


def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of `length` samples in one epoch: int64 indices, each exactly once."""
    return generator_for(seed, "order", epoch).permutation(length)
