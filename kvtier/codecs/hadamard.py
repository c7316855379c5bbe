"""The Walsh-Hadamard rotation: it spreads an outlier over all channels, and is its own inverse."""

import math

import numpy as np

from kvtier.codecs.elements import Floats


def rotate(values: Floats, axis: int) -> Floats:
    """Rotate along `axis`, whose length is a power of two; the order of the sums is fixed, so bits are too."""
    rows = np.moveaxis(values, axis, 0).copy()
    n = len(rows)
    step = 1
    while step < n:
        pairs = rows.reshape(n // (2 * step), 2, -1)
        left, right = pairs[:, 0], pairs[:, 1]
        difference = left - right
        left += right
        right[...] = difference
        step *= 2
    rows *= np.float32(1 / math.sqrt(n))
    return np.moveaxis(rows, 0, axis)


def rotatable(n: int) -> bool:
    """Whether an axis of this length can be rotated."""
    return n > 0 and n & (n - 1) == 0
