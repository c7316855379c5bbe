"""The configuration, or what of it was measured, with what `kvtier bench tiers` recommends."""

from collections.abc import Sequence

import yaml

from kvtier.chunking import LIMIT_TOKENS
from kvtier.cli.room import Chunk
from kvtier.config.structs import MOST_THREADS
from kvtier.measure.advice import Advice
from kvtier.units import format_nbytes

BLOCK = 16  # tokens of vLLM's block


def tuned(text: str, advice: Sequence[Advice], use: Chunk) -> str:
    """Put what was found into a YAML: for each lower tier, and what the most demanding wants; comments are lost."""
    raw = yaml.safe_load(text)
    for tier, each in zip(raw.get("tiers", [])[1:], advice, strict=True):
        tier["depth"] = each.depth
        tier["medium"] = {**(tier.get("medium") or {}), **_medium(each)}
    if advice:
        raw.setdefault("io", {}).update(_io(advice))
    if advice and use.tokens:
        raw["chunk_tokens"] = _chunk_tokens(advice, use)
    return _dump(raw)


def recommended(advice: Sequence[Advice], use: Chunk) -> str:
    """Write what was found alone, as it would stand in the YAML."""
    tiers = [{"name": each.tier, "depth": each.depth, "medium": _medium(each)} for each in advice]
    chunks: dict[str, object] = {"chunk_tokens": _chunk_tokens(advice, use)} if use.tokens else {}
    return _dump({**chunks, "io": _io(advice), "tiers": tiers})


def _io(advice: Sequence[Advice]) -> dict[str, int]:
    others = len(advice) - 1  # a thread is kept for each
    return {"threads": min(MOST_THREADS, max(each.threads for each in advice) + others)}


def _medium(advice: Advice) -> dict[str, str]:
    return {
        "read": format_nbytes(advice.medium.read),
        "write": format_nbytes(advice.medium.write),
        "latency": f"{max(0.01, advice.medium.latency_s * 1e3):.2f}ms",
    }


def _chunk_tokens(advice: Sequence[Advice], use: Chunk) -> int:
    wanted = max(each.chunk_nbytes for each in advice)
    blocks = round(wanted * use.tokens / use.nbytes / BLOCK)
    return BLOCK * max(1, min(blocks, LIMIT_TOKENS // BLOCK))


def _dump(raw: object) -> str:
    text = yaml.safe_dump(raw, sort_keys=False, default_flow_style=None, width=100)
    return str(text)
