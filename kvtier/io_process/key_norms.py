"""Key norms of a chunk: what a scorer that needs no query can know.

Keys of small L2 norm draw attention, those of large norm hardly any (Devoto et al., EMNLP 2024, "A Simple
and Effective L2 Norm-Based Strategy for KV Cache Compression"; not so in the first two layers).
"""

import numpy as np

from kvtier.layout import ELEMENTS, ChunkLayout, Elements
from kvtier.tier import Bytes

_TOKENS = 32  # looked at per chunk and layer
_LAYERS = 4  # looked at, evenly spread over all but the first two


def objection(layout: ChunkLayout | str) -> str:
    """Say why chunks of this layout cannot be scored; nothing where they can."""
    if isinstance(layout, str):
        return f"how keys lie in a page is not known: {layout}"
    return "keys are 8-bit floats with scales of their own" if layout.dtype == "fp8" else ""


def key_norm(chunk: Bytes, layout: ChunkLayout) -> float:
    """Return the mean L2 norm of a sample of the chunk's keys; changes nothing."""
    elements = chunk.view(ELEMENTS[layout.dtype])
    layers, tokens = layout.shape[:2]
    step = max(1, tokens // _TOKENS)
    norms = []
    for layer in np.unique(np.linspace(min(2, layers - 1), layers - 1, _LAYERS).astype(int)):
        keys = layout.keys.layer(elements, int(layer), ("tokens", "heads", "dim"))[::step]
        norms.append(np.linalg.norm(_floats(keys), axis=-1).mean())
    return float(np.mean(norms))


def _floats(elements: Elements) -> Elements:
    """Widen to float32; bfloat16 comes as its bits."""
    if elements.dtype == np.uint16:
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32)
