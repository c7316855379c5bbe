"""What vLLM is told to run, looked at before any process of it starts: would kvtier run at all, and as it is meant?

vLLM tells a connector nothing that it does not read, and replaces one that `--kv-offloading-size` stands beside.
"""

import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvtier import releases
from kvtier.config import load
from kvtier.connectors.vllm.wrapping import wrapped
from kvtier.errors import ConfigError, KvtierError

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig

logger = logging.getLogger(__name__)

OURS = "KVTierConnector"


def watch() -> None:
    """Look at every configuration that this process makes of vLLM; the processes that it starts are given it."""
    from vllm.config import VllmConfig

    VllmConfig.__post_init__ = wrapped(VllmConfig.__post_init__, _looked)


def _looked(theirs: Any) -> Any:
    @functools.wraps(theirs)
    def hook(config: "VllmConfig", *args: Any) -> None:
        try:
            look(config)
        except ConfigError as exc:
            raise KvtierError(str(exc)) from None  # a ValueError is buried in one of pydantic
        except Exception:  # not what it knows: vLLM may start all the same
            logger.exception("kvtier: vLLM's configuration was not looked at")
        theirs(config, *args)

    return hook


def look(config: "VllmConfig") -> None:
    """Refuse what would run without kvtier, or not as written, or not at all, and warn of an unknown vLLM.

    Raises:
        ConfigError: the start is refused; says what to change.
    """
    if config.kv_transfer_config is None:
        return
    connectors = list(_connectors(config.kv_transfer_config))
    for name, extra in connectors:
        if name != OURS and ("kvtier" in extra or extra.get("spec_name") == "KVTierSpec"):
            raise ConfigError(f"kv_connector: {name!r} does not run kvtier; write {OURS!r}")
    ours = [extra for name, extra in connectors if name == OURS]
    if ours:
        _check(config, ours)
        _check_policy(config.kv_transfer_config)


def _check(config: "VllmConfig", ours: list[dict[str, Any]]) -> None:
    from vllm import __version__
    from vllm.logger import init_logger

    from kvtier.connectors.vllm.settings import refuse_foreign_keys

    if config.cache_config.kv_offloading_size is not None:
        raise ConfigError(
            f"--kv-offloading-size: with it vLLM runs its own offload in place of {OURS}; remove it, and give "
            f"kvtier's tier in DRAM a capacity"
        )
    for extra in ours:
        refuse_foreign_keys(extra)
        load(extra.get("kvtier"), here=_ranks_are_here(config))
    if not releases.supported(__version__):
        init_logger("vllm.kvtier").warning_once(
            "kvtier was not run with vLLM %s, but with %s: it may turn itself off, and `kvtier:off` is 1 then",
            __version__,
            releases.SUPPORTED,
        )


def _ranks_are_here(config: "VllmConfig") -> bool:
    """Whether the ranks run on this machine, so that its directories and NUMA nodes are theirs."""
    parallel = config.parallel_config
    backends = (parallel.distributed_executor_backend, parallel.data_parallel_backend)
    served_alone = parallel.data_parallel_size_local == 0  # every engine runs on another machine
    return parallel.nnodes == 1 and not served_alone and "ray" not in backends


def _check_policy(transfer: "KVTransferConfig") -> None:
    """Warn where kvtier cannot set it: among several connectors the outermost configuration decides."""
    from vllm.logger import init_logger

    if transfer.kv_connector == "MultiConnector" and transfer.kv_load_failure_policy != "recompute":
        init_logger("vllm.kvtier").warning_once(
            "kv_load_failure_policy: with 'fail' a request ends with an error where kvtier cannot load what it promised; "
            "set 'recompute' beside MultiConnector, not beside %s",
            OURS,
        )


def _connectors(transfer: "KVTransferConfig") -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Name the connectors with their options: the one, and those that `MultiConnector` has."""
    extra = transfer.kv_connector_extra_config
    yield transfer.kv_connector, extra
    if transfer.kv_connector == "MultiConnector":
        for child in extra.get("connectors") or ():
            if isinstance(child, dict):
                yield child.get("kv_connector"), child.get("kv_connector_extra_config") or {}
