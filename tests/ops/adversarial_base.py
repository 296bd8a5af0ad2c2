"""What the generators of ``adversarial.py`` share: what is asked of them, and their register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Arrays = tuple[np.ndarray, np.ndarray]
ROUNDED = {  # significand bits, largest exponent of 2 that a value of this module may have
    torch.float64: (53, 1000),
    torch.float32: (24, 124),
    torch.bfloat16: (8, 124),
    torch.float16: (11, 14),
}


@dataclass(frozen=True)
class Ask:
    """What a generator is asked for."""

    rng: np.random.Generator
    n: int
    d: int
    k: int
    metric: str
    dtype: torch.dtype

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def rows_of(self, c: np.ndarray) -> np.ndarray:
        """For each row one of the centroids, all in turn."""
        return c[np.arange(self.n) % len(c)]


GENERATORS: dict[str, Callable[[Ask], Arrays]] = {}


def generator(function: Callable[[Ask], Arrays]) -> Callable[[Ask], Arrays]:
    GENERATORS[function.__name__] = function
    return function


def to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounded to ``bits`` significant bits, half to even: bfloat16 is 8 bits, float32 24."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


def float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)
