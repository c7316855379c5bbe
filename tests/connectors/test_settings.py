"""What may stand beside `kvtier` in vLLM's `kv_connector_extra_config`."""

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.settings import name_spec, refuse_foreign_keys, settle
from kvtier.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("kvteir", "unknown key (did you mean 'kvtier'?)"),
        ("tiers", "unknown key (did you mean 'kvtier'?); what is kvtier's goes into"),
        ("cpu_bytes_to_use", "unknown key; what is kvtier's goes into"),
        ("canonical_layout", "not supported by kvtier"),
    ],
)
def test_a_key_that_nobody_would_read_is_refused(key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_foreign_keys({"kvtier": "kvtier.yaml", key: 1})
    assert str(caught.value).startswith(f"kv_connector_extra_config.{key}: {words}")


def test_what_we_set_ourselves_is_known_when_the_next_process_looks() -> None:
    extra = {"kvtier": {}, "offload_prompt_only": False, "blocks_per_chunk": 2}
    name_spec(extra)
    refuse_foreign_keys({**extra, "self_describing_kv_events": True})


def test_an_option_that_follows_from_ours_is_not_overruled_in_silence() -> None:
    extra: dict[str, object] = {}
    settle(extra, "blocks_per_chunk", 2, "chunk_tokens")
    settle(extra, "blocks_per_chunk", 2, "chunk_tokens")  # another process of the same start
    assert extra == {"blocks_per_chunk": 2}
    with pytest.raises(ConfigError, match=r"blocks_per_chunk: .* set chunk_tokens"):
        settle(extra, "blocks_per_chunk", 4, "chunk_tokens")
