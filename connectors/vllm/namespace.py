"""What this engine's records are called: from its start on, and after each reset."""

import logging
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtier.config import Config
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.epochs import Epochs, directories
from kvtier.connectors.vllm.ranks import Ranks, engine_of
from kvtier.io_process.record import namespace_of
from kvtier.registry import is_asked
from kvtier.types import OpKind, TierOp

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.kvtier")
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
        self.shared = ""
        """The manifest for tiers that engines share; empty: this engine has nothing that others could use."""
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
        self.shared = self._shared(ranks)
        epoch = self._epochs.first()
        if self.ended_early:
            self._epochs.end(waits=False)
        return identity.in_epoch(self._text, epoch) if epoch else self._text

    def _shared(self, ranks: Ranks) -> str:
        asked = [tier.name for tier in self._config.tiers[1:] if is_asked(tier.kind)]
        if not asked:
            return ""
        if why := identity.private(self._vllm_config, ranks.hellos, self._config):
            _warnings.warning("kvtier: %s is not used: %s", ", ".join(asked), why)
            return ""
        architecture = identity.architecture(self._vllm_config.model_config)
        text = identity.shared_manifest(self._text, ranks.hellos, self._config, architecture)
        logger.info("kvtier: %s: namespace %s", ", ".join(asked), namespace_of(text))
        return text

    def leaves(self, call: str) -> bool:
        """Whether this engine has to leave stores that engines share, now that a call may have changed its weights."""
        if not self.shared:
            return False
        self.shared = ""
        said = "kvtier: workers were called (%s): what this engine computes is shared with no other from now on"
        _warnings.warning(said, call)
        return True

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
        own = [i for i, tier in enumerate(self._config.tiers) if i and not is_asked(tier.kind)]
        return [TierOp(_FORSAKEN + i, OpKind.RESET, tier=i, text=text) for i in own]
