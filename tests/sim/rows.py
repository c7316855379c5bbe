"""Small traces, written by hand or drawn by Hypothesis."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from kvtier.trace.trace import Row, Trace, TraceBuilder

TRACES = Path(__file__).parents[1] / "traces"
BLOCK = 16


def trace(requests: list[list[int]], *, block: int = BLOCK) -> Trace:
    """Make a trace of prefix-chained ids, a request per second."""
    builder = TraceBuilder(block)
    for at, blocks in enumerate(requests):
        tokens = len(blocks) * block
        builder.add(Row(float(at), tokens, 1, np.array(blocks, np.int64)))
    return builder.build()


def path(node: int) -> list[int]:
    """List a node's ancestors in the binary tree whose root is 1, and the node."""
    return [node >> i for i in range(node.bit_length() - 1, -1, -1)]


forests = st.lists(st.integers(1, 15).map(path), min_size=1, max_size=7).map(trace)
