# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5"]
# ///
"""Numbers from an integer hash: the same in scripts and in the tests (`tests/embedded/common/hash.rs`), without a file."""

import numpy as np


def hashes(count, seed):
    with np.errstate(over="ignore"):
        h = np.arange(count, dtype=np.uint32) + np.uint32(seed) * np.uint32(0x9E3779B9)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return h ^ (h >> np.uint32(16))


def values(shape, seed):
    """Numbers from -1 to 1 that float32 holds exactly, in double precision."""
    return ((hashes(int(np.prod(shape)), seed) >> 8).astype(np.float64) / 2**23 - 1).reshape(shape)
