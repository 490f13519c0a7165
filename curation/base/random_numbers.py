"""Random numbers that are a hash of integers: the same on every machine, in any order, in any number of processes."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the step of SplitMix64's counter


def mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele et al., 2014): every bit of the result depends on every bit of ``state``, uint64."""
    with np.errstate(over="ignore"):
        state = state + GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def unit(bits: np.ndarray) -> np.ndarray:
    """The upper 53 bits of numbers, uint64, as float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53
