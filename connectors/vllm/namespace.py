"""What this engine's records are called: from its start on, and after each reset."""

import logging
from typing import TYPE_CHECKING

from kvtier.config import Config
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.epochs import Epochs, directories
from kvtier.connectors.vllm.ranks import Ranks, engine_of
from kvtier.io_process.record import namespace_of
from kvtier.types import OpKind, TierOp

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

_warnings = logging.getLogger(__name__)
_FORSAKEN = 1 << 62  # operation ids beyond the brain's


class Namespace:
    """Writes its manifests, and lets resets outlive the engine. EngineCore's main thread.

    Before the ranks have said hello there is no name, and nothing of this engine on any disk. What earlier ones
    wrote is of the weights in the files, as a later start has them: an epoch that ends then, ends with the hello.
    """

    def __init__(
        self, config: Config, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig"
    ) -> None:
        """Read what earlier resets noted in the tiers' directories; waits, for the start of the engine only."""
        self._config = config
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        engine = engine_of(transfer.engine_id, vllm_config.parallel_config)
        self._epochs = Epochs(directories(config, engine), lambda: self._text)
        self._text = ""  # its manifest, without a reset
        self.ended_early = False
        """An epoch ended before there was a name."""

    @property
    def name(self) -> str:
        """What the records are of, without a reset."""
        return namespace_of(self._text)

    def first(self, ranks: Ranks) -> str:
        """Write the manifest to open the tiers with."""
        described = (self._vllm_config, self._kv_cache_config, ranks.hellos, self._config)
        self._text = identity.manifest(*described)
        if why := identity.ephemeral(self._vllm_config, ranks.hellos, self._config):
            self._epochs = Epochs()
            if len(self._config.tiers) > 1:
                _warnings.warning(
                    "kvtier: nothing stored will be found again after a restart: %s", why
                )
        epoch = self._epochs.first()
        if self.ended_early:
            self._epochs.end(waits=False)
        return identity.in_epoch(self._text, epoch) if epoch else self._text

    def end(self, *, waits: bool = True) -> None:
        """Let no later engine start in this epoch; mostly waits a moment for the disks."""
        if self._text:
            self._epochs.end(waits=waits)
        else:
            self.ended_early = True

    def fresh(self) -> str:
        """Write the manifest of the epoch that follows a reset; looks at nothing but the first one."""
        return identity.in_epoch(self._text, identity.new_epoch())

    def forsaken(self) -> list[TierOp]:
        """Say to the ranks what a reset with kvtier off is: nothing where no tier was ever opened."""
        if not self._text:
            return []
        text = self.fresh()
        tiers = range(1, len(self._config.tiers))
        return [TierOp(_FORSAKEN + i, OpKind.RESET, tier=i, text=text) for i in tiers]
