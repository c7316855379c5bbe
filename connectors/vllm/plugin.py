"""vLLM's plugin entry point, in every process: makes `"kv_connector": "KVTierConnector"` known and its start looked at."""

import logging
import time

logger = logging.getLogger(__name__)

registered_ns = 0
"""When vLLM took kvtier in, in this process: before it reads any weights. 0: it did not do it by the entry point."""


def register() -> None:
    """Register the connector and its spec once; never raises, because vLLM would not start."""
    global registered_ns
    registered_ns = registered_ns or time.time_ns()
    try:
        _log_as_vllm()
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.v1.kv_offload.factory import OffloadingSpecFactory

        from kvtier.connectors.vllm import preflight

        if "KVTierConnector" not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(
                "KVTierConnector", "kvtier.connectors.vllm.connector", "KVTierConnector"
            )
        if "KVTierSpec" not in OffloadingSpecFactory._registry:
            OffloadingSpecFactory.register_spec(
                "KVTierSpec", "kvtier.connectors.vllm.spec", "KVTierSpec"
            )
        preflight.watch()
    except Exception:
        logger.exception("kvtier is installed but could not register with this vLLM")


def _log_as_vllm() -> None:
    """Let kvtier's loggers have vLLM's handlers and level, now and when vLLM sets them anew; a user's own come first."""
    ours = logging.getLogger("kvtier")
    if not ours.handlers and ours.level == logging.NOTSET:
        ours.parent = logging.getLogger("vllm")
