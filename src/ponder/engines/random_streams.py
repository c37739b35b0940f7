"""Random numbers of a sample: counter-based, the same in every engine that draws tokens itself.

Each sample has a key made of (seed, sample index); the uniform number for position `t` of its response is a hash of
(key, t). So a sample draws the same numbers with any batch composition, and there is no state to keep or move.

Hash: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_REDRAW = np.uint64(0xD1B54A32D192ED03)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, on uint64 of any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_keys(seed: int, indices: np.ndarray) -> np.ndarray:
    """Keys of the streams `(seed, index)`, uint64, one per index."""
    base = mix(np.array([seed & _MASK], dtype=np.uint64) + _GOLDEN)
    return mix(base ^ mix((indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN))


def uniforms(keys_B: np.ndarray, positions_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row, float64: the number at a position of each row's stream."""
    bits = mix(keys_B + (positions_B.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def again(keys_B: np.ndarray) -> np.ndarray:
    """Other keys, for samples of which a draw was replaced: the next draw must not see the same number."""
    return mix(keys_B ^ _REDRAW)
