"""Which names of images last: by the names that vLLM itself gives."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
from PIL import Image
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.multimodal.parse import MultiModalDataParser, parse_mm_uuids
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.renderers.base import BaseRenderer

from kvtier.connectors.vllm.media import MediaNames


def configuration(*, prefix_caching: bool, cache_gb: float) -> Any:
    media = SimpleNamespace(mm_processor_cache_gb=cache_gb)
    return SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=media),
        cache_config=SimpleNamespace(enable_prefix_caching=prefix_caching),
    )


def named_by_vllm(vllm: Any, seed: int, uuid: str | None = None, algorithm: Any = "blake3") -> str:
    """How vLLM names the first image of a server's life."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    given: Any = {"image": [Image.fromarray(pixels)]}
    renderer: Any = SimpleNamespace(
        model_config=vllm.model_config, config=vllm, _validate_mm_uuids=lambda *_: None
    )
    items = MultiModalDataParser().parse_mm_data(given)
    uuids = parse_mm_uuids({"image": [uuid]} if uuid else None)
    uuids = BaseRenderer._process_mm_uuids(renderer, given, items, uuids, "renderer0-mm-1")
    names = ProcessorInputs("", items, uuids).get_mm_hashes("model", algorithm)["image"]
    return str(names[0])


def lasts(vllm: Any, name: str) -> bool:
    place = PlaceholderRange(offset=0, length=1)
    return MediaNames(vllm).last([MultiModalFeatureSpec(None, "image", name, place)])


@pytest.mark.parametrize(("prefix_caching", "cache_gb"), [(True, 0), (False, 4), (True, 4)])
@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "sha512"])
def test_a_hash_of_the_content_lasts(prefix_caching: bool, cache_gb: float, algorithm: str) -> None:
    vllm = configuration(prefix_caching=prefix_caching, cache_gb=cache_gb)
    one, other = (named_by_vllm(vllm, seed, algorithm=algorithm) for seed in (1, 2))
    assert one != other
    assert lasts(vllm, one)
    assert lasts(vllm, f"adapter:{one}")


def test_where_vllm_counts_two_lives_name_two_images_alike() -> None:
    vllm = configuration(prefix_caching=False, cache_gb=0)
    one, other = (named_by_vllm(vllm, seed) for seed in (1, 2))
    assert one == other
    assert not lasts(vllm, one)
    assert not lasts(vllm, "a" * 64), "the count, hashed with the options of a request"
    assert MediaNames(vllm).last([])


def test_a_name_that_a_client_gives_does_not_last() -> None:
    vllm = configuration(prefix_caching=True, cache_gb=4)
    assert not lasts(vllm, named_by_vllm(vllm, 1, uuid="my-photo"))
