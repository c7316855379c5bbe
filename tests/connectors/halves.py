"""The two halves of the connector without an engine around them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.config import KVTransferConfig

from kvtier.config import Config, digest, load
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.landing import Landings
from kvtier.connectors.vllm.load_trace import CopyTrace
from kvtier.connectors.vllm.manager import TieredCacheManager
from kvtier.connectors.vllm.messages import KVTierWorkerMetadata
from kvtier.connectors.vllm.namespace import Namespace
from kvtier.connectors.vllm.rank import Rank
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.scheduling import Scheduling
from kvtier.connectors.vllm.weights import Weights
from kvtier.connectors.vllm.worker import KVTierWorker

CONFIG = load({"tiers": [{"name": "dram", "kind": "dram", "capacity": "1MiB"}]})


def hello(slots: int, *, rank: int = 0, local_ranks: int = 1, config: Config = CONFIG) -> Hello:
    """A rank's hello."""
    return Hello(
        rank=rank,
        local_ranks=local_ranks,
        slots=slots,
        group_nbytes={0: 4096},
        pages={0: (2048,)},
        arranged={0: ("backend",)},
        device="cpu",
        config_digest=digest(config),
        blocks_per_chunk=2,
        weights=Weights("content:0", "sample:0"),
    )


def scheduling(
    groups: tuple[object, ...] = (),
    *,
    config: Config = CONFIG,
    hellos: Sequence[Hello] = (),
    **vllm: object,
) -> Scheduling:
    """EngineCore's half, which has heard its ranks, by default one; `vllm` are attributes of vLLM's configuration."""
    heard = list(hellos) or [hello(8, config=config)]
    made = unheard(len(heard), groups, config=config, **vllm)
    made.namespace.first = lambda ranks: _named(made.namespace)  # type: ignore[method-assign]
    made.hear(KVTierWorkerMetadata(hellos=heard))
    return made


def _named(namespace: Namespace) -> str:
    """Name it without a model."""
    namespace._text = '{"epoch": "", "model": "test"}'
    return namespace._text


def unheard(
    world_size: int = 1,
    groups: tuple[object, ...] = (),
    *,
    config: Config = CONFIG,
    **vllm: object,
) -> Scheduling:
    """EngineCore's half, as vLLM makes it."""
    group = SimpleNamespace(group_idx=0, tokens_per_chunk=32, sliding_window_size_in_chunks=None)
    base: Any = SimpleNamespace(
        manager=TieredCacheManager(Guard()),
        config=SimpleNamespace(kv_group_configs=[group], supports_partial_tail=False),
        _req_status={},
    )
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(get_hidden_size=lambda: 64, multimodal_config=None),
        parallel_config=SimpleNamespace(
            world_size=world_size,
            pipeline_parallel_size=1,
            data_parallel_size=1,
            data_parallel_index=0,
        ),
        cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
        max_concurrent_batches=1,
        **{"kv_transfer_config": KVTransferConfig("KVTierConnector", kv_role="kv_both"), **vllm},
        kv_events_config=None,
    )
    plain = SimpleNamespace(kv_cache_spec=SimpleNamespace())
    cache_config: Any = SimpleNamespace(kv_cache_groups=list(groups) or [plain])
    return Scheduling(config, vllm_config, cache_config, base)


def worker(engine: object) -> KVTierWorker:
    """A worker of one block per chunk around a transfer engine."""
    made = KVTierWorker.__new__(KVTierWorker)
    made.blocks_per_chunk, made._groups, made._engine = 1, [0], engine  # type: ignore[assignment]
    made._jobs, made._failed, made._spoiled = {}, {}, set()
    made._collected = []
    made._failed_loads, made._invalid_blocks, made.guard = set(), set(), Guard()
    made._early, made.idle, made.trace = set(), False, CopyTrace()
    made.io = None
    made._landings = Landings(
        lambda: made.io.poll() if made.io else [], lambda copies: made._engine.onload(copies)
    )
    return made


def rank(of: KVTierWorker) -> Rank:
    """The worker's half."""
    made = Rank.__new__(Rank)
    made._base = SimpleNamespace(worker=of, _load_jobs={})
    made._by_blocks, made._failed_loads = True, set()
    made.guard, made._said_broken, made._placed = of.guard, False, []
    made._look_at, made._timed, made._asked, made._rest = 0.0, 0, False, []
    made._fingerprint = None
    made._loras = made._step = None
    return made
