"""Which codecs give an engine a namespace of its own."""

import pytest

pytest.importorskip("vllm")

from kvtier.config import from_builtins, load, to_builtins
from kvtier.connectors.vllm.identity import lossy


def test_int4_of_other_bits_is_another_namespace() -> None:
    def changing(codec: object) -> object:
        cold = {
            "name": "cold",
            "kind": "file",
            "path": "/tmp/kv",
            "capacity": "1MiB",
            "codec": codec,
        }
        parsed = load({"tiers": [{"kind": "dram", "capacity": "1MiB"}, cold]})
        return lossy(from_builtins(to_builtins(parsed)))

    assert changing("int4") != changing("int8")
    assert changing("int4") == changing([{"kind": "quantise", "k": 4, "v": 4}, "zstd"])
    assert changing("lossless") == []
    assert changing("raw") == []
