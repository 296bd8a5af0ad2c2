"""Random numbers as a pure function of (seed, epoch, sample, stream): no state to save or share.

A crop, a flip, a mask or a shuffled order is the same for any number of workers or ranks and after
any resume, because nothing is ever "drawn next". The generator is SplitMix64 (Steele, Lea, Flood
2014): each sample's key is a hash of its coordinates, and value j of a sample is the j-th output of
the sequence that starts at this key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# One number per use, so that no two uses of the same (seed, epoch, sample) share values. Never
# renumber: a resumed run would change its crops and masks.
STREAM_CROP = 0
STREAM_MASK = 1
STREAM_SHUFFLE = 2
STREAM_KMEANS = 3
STREAM_SPLIT = 4

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

UInt64Array = npt.NDArray[np.uint64]


def _mix(z: UInt64Array) -> UInt64Array:
    """SplitMix64's output function, a bijection of 64-bit integers; uint64 wraps by design."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _fold(key: UInt64Array, value: int | npt.NDArray[np.int64]) -> UInt64Array:
    """Mix one more coordinate into a key; negative integers count modulo 2**64."""
    if isinstance(value, int):
        word = np.array([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    else:
        word = value.astype(np.int64).view(np.uint64)
    return _mix(key ^ _mix(word + _GAMMA))


def bits(seed: int, epoch: int, samples: npt.ArrayLike, stream: int, count: int) -> UInt64Array:
    """64 random bits per value.

    Args:
        seed, epoch, stream: any integers; `stream` one of the STREAM_ constants.
        samples: int64 [B], the ids of the samples (their place in the data set, not in the batch).
        count: values per sample, >= 0.

    Returns:
        uint64 [B, count].
    """
    ids = np.asarray(samples, dtype=np.int64)
    if ids.ndim != 1:
        raise ValueError(f"samples must have shape [B], got {list(ids.shape)}")
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    with np.errstate(over="ignore"):
        key = _fold(np.zeros(1, dtype=np.uint64), int(seed))
        key = _fold(key, int(stream))
        key = _fold(key, int(epoch))
        keys = _fold(np.broadcast_to(key, ids.shape).copy(), ids)
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
        return _mix(keys[:, None] + steps[None, :])


def uniform(
    seed: int, epoch: int, samples: npt.ArrayLike, stream: int, count: int
) -> npt.NDArray[np.float64]:
    """Uniform values in [0, 1), float64 [B, count], multiples of 2**-53; arguments of `bits`."""
    words = bits(seed, epoch, samples, stream, count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(
    seed: int, epoch: int, size: int, stream: int = STREAM_SHUFFLE
) -> npt.NDArray[np.int64]:
    """A shuffled order of 0 .. size-1, int64 [size], different for each (seed, epoch, stream)."""
    keys = bits(seed, epoch, np.arange(size, dtype=np.int64), stream, 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
