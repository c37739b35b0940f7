"""Seeds of samples: the same on every machine and in every process (`hash()` is neither)."""

from __future__ import annotations

import hashlib


def derive(run_seed: int, problem_id: str, index: int) -> int:
    """The seed of one sample, from the run's seed, the problem's id and the sample's index.

    Independent streams for different arguments (BLAKE2b). 63 bits, so that it fits a signed 64-bit integer.
    """
    key = f"{run_seed}\x1f{index}\x1f{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
