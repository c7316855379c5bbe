"""Whether vLLM's names for images, audio and video say what is in them: they are part of a chunk's key.

vLLM hashes the content, unless neither of its caches needs the hash: then it counts, and counts again from the start in
the next process. A client may give a name of its own, which says what the client wants it to.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.multimodal.inputs import MultiModalFeatureSpec

_DIGEST = re.compile(r"(?:[^:]*:)*(?:[0-9a-f]{64}|[0-9a-f]{128})")
"""A hash of blake3, sha256 or sha512, after the name of a LoRA whose adapter sees the medium too."""


class MediaNames:
    """Tells content hashes from names that may mean another medium in the next life of the server.

    What cannot be told apart: a client's name that looks like a hash, or that vLLM hashed together with the
    options of the request.
    """

    def __init__(self, vllm_config: "VllmConfig") -> None:
        media = vllm_config.model_config.multimodal_config
        self._counted = (
            media is not None
            and media.mm_processor_cache_gb == 0
            and not vllm_config.cache_config.enable_prefix_caching
        )

    def last(self, features: "Iterable[MultiModalFeatureSpec]") -> bool:
        """Whether each of a request's media has a name that lasts; true where it has none."""
        return all(
            not self._counted and _DIGEST.fullmatch(feature.identifier) for feature in features
        )
