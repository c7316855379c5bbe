"""What EngineCore makes and says once the ranks have said hello."""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtier.assembly import assemble
from kvtier.brain import TieredCache, Why
from kvtier.config import Config
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.ranks import Ranks, engine_of
from kvtier.connectors.vllm.settings import summary
from kvtier.connectors.vllm.statuses import Statuses
from kvtier.registry import kept_once
from kvtier.trace.recorder import Recorder
from kvtier.types import GroupSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.kvtier")
"""What vLLM's own log level lets through: other loggers say nothing below a warning."""

_warnings = logging.getLogger(__name__)


def make_brain(
    mine: Config,
    ranks: Ranks,
    statuses: Statuses,
    vllm_config: "VllmConfig",
    *,
    overlap: bool,
) -> TieredCache:
    """Make the brain from one rank's configuration, vLLM's KV-cache groups and what the ranks said.

    With `overlap` a hit may be given whose last chunks land while others are copied.
    """
    groups = [
        GroupSpec(
            index=group.group_idx,
            chunk_tokens=group.tokens_per_chunk,
            window_chunks=group.sliding_window_size_in_chunks,
            nbytes=ranks.group_nbytes(group.group_idx),
        )
        for group in statuses.groups
    ]
    even_tokens = 6.0 * vllm_config.model_config.get_hidden_size()  # see Costs.prefill_s
    asked = vllm_config.kv_events_config
    return assemble(
        mine,
        groups,
        ranks=len(ranks.hellos),
        copies=ranks.copies,
        even_tokens=even_tokens,
        overlap=overlap,
        events=asked is not None and asked.enable_kv_cache_events,
    )


def make_recorder(config: Config, statuses: Statuses, vllm_config: "VllmConfig") -> Recorder | None:
    """Begin to write down what arrives, if that is asked for."""
    if config.trace is None:
        return None
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    engine = engine_of(transfer.engine_id, vllm_config.parallel_config)
    return Recorder(config.trace, statuses.prefix_tokens, engine=engine)


def say_hit(request: "Request", loaded: int, why: Why | None) -> None:
    """Say at debug level what a request loads, and why no more."""
    logger.debug(
        "kvtier: request %s: %d of %d tokens from kvtier%s",
        request.request_id,
        loaded,
        request.num_prompt_tokens,
        f": {why.text}" if why else "",
    )


def say_report(request: "Request", report: Mapping[str, object]) -> None:
    """Say at debug level what a request asked to be told: a stream's answer has no field for it."""
    logger.debug("kvtier: request %s: %s", request.request_id, json.dumps(report))


def announce(mine: Config, ranks: Ranks, statuses: Statuses, why_chunks: str) -> None:
    """Say what each rank has, and what may surprise later."""
    logger.info(
        "kvtier: chunks of %d tokens (%s), %d rank(s), %d on a node; of each rank: %s",
        statuses.prefix_tokens,
        why_chunks,
        len(ranks.hellos),
        ranks.local_ranks,
        summary(mine, ranks.arena_nbytes),
    )
    once = [tier.name for tier in mine.tiers[1:] if ranks.copies and kept_once(tier.kind)]
    if once:
        logger.info(
            "kvtier: all ranks have the same KV: the first keeps one record for all in %s", once
        )
    for tier, _ in identity.lossy(mine):
        _warnings.warning(
            "kvtier: tier %r is lossy: answers over what is read from it may differ; its records are "
            "of a namespace of their own",
            tier,
        )
