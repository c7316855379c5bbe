"""Pages of one size that came about in different ways are told apart, and nothing else is."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from kvtier.connectors.vllm.arrangement import arrangements, device_name


class One:
    pass


class Other:
    pass


def arranged(cache: object, backend: type = One, blocks: int = 100) -> tuple[str, ...]:
    layer = SimpleNamespace(get_attn_backend=lambda: backend)
    config: Any = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context={"a": layer})
    )
    group = SimpleNamespace(layer_names=["a", "of another rank"])
    caches: Any = {"a": cache}
    kv: Any = SimpleNamespace(kv_cache_groups=[group], num_blocks=blocks)
    return arrangements(config, kv, caches)[0]


NHD = torch.zeros(2, 100, 16, 4, 8)


def test_the_number_of_blocks_tells_nothing() -> None:
    assert arranged(NHD) == arranged(torch.zeros(2, 700, 16, 4, 8), blocks=700)


def test_backend_order_type_and_kernel_blocks_do() -> None:
    same_size = [
        arranged(NHD),
        arranged(NHD, Other),
        arranged(torch.zeros(2, 100, 4, 16, 8).permute(0, 1, 3, 2, 4)),  # HND
        arranged(NHD.to(torch.int32)),
        arranged(torch.zeros(2, 200, 8, 4, 8)),  # two kernel blocks a page
        arranged([NHD[:1], NHD[1:]]),
    ]
    assert len(set(same_size)) == len(same_size)


def test_a_layer_without_a_backend_is_named_by_its_class() -> None:
    config: Any = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context={"a": One()})
    )
    kv: Any = SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=["a"])], num_blocks=100)
    assert "One " in arrangements(config, kv, {"a": NHD})[0][0]


def test_the_device_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    assert device_name(torch.device("cpu")).startswith("cpu,")
    capability = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(
        type(current_platform), "get_device_capability", lambda *_: capability, raising=False
    )
    assert device_name(torch.device("cuda", 0)) == "cuda-9"


def test_what_cannot_be_looked_at_is_shared_with_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen = {arranged(object()) for _ in range(3)}
    assert len(seen) == 3
    assert "the pages of group 0 cannot be looked at" in caplog.text
