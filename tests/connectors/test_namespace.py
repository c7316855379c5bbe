"""Whatever changes the bytes of a page changes the namespace; whatever does not, does not."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

import vllm
from vllm.v1.core import kv_cache_utils

from kvtier.config import load
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.model_length import length_that_counts
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.weights import Weights
from kvtier.io_process.record import namespace_of

BACKEND = "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend bfloat16 [2, 1 a block]"


class Described:
    """What an engine says of itself to its manifest; a change is made on a fresh one."""

    def __init__(self) -> None:
        self.version = "0.32.1"
        self.seed = b"seed"
        self.spec: Any = SimpleNamespace(block_size=16, page_size_bytes=65536)
        self.group: Any = SimpleNamespace(layer_names=["layers.0"], kv_cache_spec=self.spec)
        self.model: Any = SimpleNamespace(
            model="/models/one",
            revision="main",
            max_model_len=8192,
            multimodal_config=None,
            dtype="bfloat16",
            quantization=None,
            hf_overrides={},
            hf_config=SimpleNamespace(
                architectures=["Qwen3ForCausalLM"],
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            ),
        )
        self.cache: Any = SimpleNamespace(
            cache_dtype="auto", prefix_caching_hash_algo="sha256", gpu_memory_utilization=0.9
        )
        self.parallel: Any = SimpleNamespace(
            tensor_parallel_size=2,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            data_parallel_index=0,
        )
        self.draft: Any = None
        self.config: dict[str, Any] = {
            "tiers": [{"kind": "dram", "capacity": "1GiB"}],
        }
        self.hello: dict[str, Any] = {
            "local_ranks": 2,
            "slots": 100,
            "group_nbytes": {0: 1 << 20},
            "pages": {0: (65536,)},
            "arranged": {0: (BACKEND,)},
            "device": "cuda-9",
            "config_digest": "a",
            "blocks_per_chunk": 4,
            "weights": Weights("content:ab", "sample:ab"),
        }

    def namespace(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(vllm, "__version__", self.version)
        monkeypatch.setattr(kv_cache_utils, "NONE_HASH", self.seed, raising=False)
        engine: Any = SimpleNamespace(
            model_config=self.model,
            cache_config=self.cache,
            parallel_config=self.parallel,
            speculative_config=self.draft,
        )
        groups: Any = SimpleNamespace(kv_cache_groups=[self.group])
        hellos = [Hello(rank=rank, **self.hello) for rank in range(2)]
        return namespace_of(identity.manifest(engine, groups, hellos, load(self.config)))


Change = Callable[[Described], object]


def sets(owner: str, **values: object) -> Change:
    return lambda made: vars(getattr(made, owner)).update(values)


def says(**values: object) -> Change:
    return lambda made: made.hello.update(values)


def rope(**parameters: object) -> Change:
    return lambda made: setattr(made.model.hf_config, "rope_parameters", parameters)


def lossy(made: Described) -> None:
    tier = {"kind": "memory", "capacity": "1GiB", "codec": "int8"}
    made.config["tiers"].append(tier)


COUNTS: dict[str, Change] = {
    "another content of the weights": says(weights=Weights("content:cd", "sample:cd")),
    "the user's word for the weights": lambda made: made.config.update(weights_id="v2"),
    "dtype": sets("model", dtype="float16"),
    "quantization": sets("model", quantization="fp8"),
    "kv dtype": sets("cache", cache_dtype="fp8"),
    "rope": rope(rope_type="default", rope_theta=5e5),
    "overrides": sets("model", hf_overrides={"rope_theta": 1}),
    "architecture": lambda made: setattr(made.model.hf_config, "architectures", ["Other"]),
    "vLLM's minor version": lambda made: setattr(made, "version", "0.33.0"),
    "the device's architecture": says(device="cuda-10"),
    "the backend that was chosen": says(arranged={0: (BACKEND.replace("flash_attn", "fi"),)}),
    "how its tensors lie": says(arranged={0: (BACKEND.replace("2, 1", "1, 2"),)}),
    "bytes of a page": says(pages={0: (32768,)}),
    "tokens of a block": sets("spec", block_size=32),
    "layers": sets("group", layer_names=["layers.0", "layers.1"]),
    "blocks of a chunk": says(blocks_per_chunk=8),
    "tensor parallel": sets("parallel", tensor_parallel_size=4),
    "pipeline parallel": sets("parallel", pipeline_parallel_size=2),
    "context parallel": sets("parallel", decode_context_parallel_size=2),
    "one record for all ranks": says(copies=True),
    "how keys are hashed": sets("cache", prefix_caching_hash_algo="sha256_cbor"),
    "the seed of the hashes": lambda made: setattr(made, "seed", b"other"),
    "a draft model": lambda made: setattr(
        made, "draft", SimpleNamespace(method="eagle", model="draft")
    ),
    "a lossy tier": lossy,
}
COUNTS_NOT: dict[str, Change] = {
    "where the model is": sets("model", model="/mnt/copy/of/one", revision="abc"),
    "the longest prompt": sets("model", max_model_len=131072),
    "vLLM's patch": lambda made: setattr(made, "version", "0.32.4"),
    "slots": says(slots=7),
    "ranks of a node": says(local_ranks=1),
    "bytes of DRAM": lambda made: made.config["tiers"][0].update(capacity="8GiB"),
    "the configuration's own words": says(config_digest="b"),
    "which data-parallel engine": sets("parallel", data_parallel_index=3),
    "memory of the device": sets("cache", gpu_memory_utilization=0.5),
    "threads": lambda made: made.config.update(io={"threads": 4}),
}


@given(
    counts=st.sets(st.sampled_from(sorted(COUNTS)), max_size=3),
    counts_not=st.sets(st.sampled_from(sorted(COUNTS_NOT))),
)
@settings(max_examples=150, deadline=None)
def test_what_counts_and_what_does_not(counts: set[str], counts_not: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain = Described().namespace(patch)
        made = Described()
        for name in [*counts, *counts_not]:
            {**COUNTS, **COUNTS_NOT}[name](made)
        assert (made.namespace(patch) == plain) == (not counts), (counts, counts_not)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_each_alone_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Described()
    COUNTS[name](made)
    assert made.namespace(monkeypatch) != Described().namespace(monkeypatch)


@pytest.mark.parametrize("name", sorted(COUNTS_NOT))
def test_each_alone_counts_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Described()
    COUNTS_NOT[name](made)
    assert made.namespace(monkeypatch) == Described().namespace(monkeypatch)


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("LongRoPE chooses its factors by it", rope(rope_type="longrope")),
        ("so does dynamic NTK", rope(rope_type="dynamic")),
        ("of one kind of layers", rope(full={"rope_type": "longrope"}, sliding={})),
        ("a kind that is not known", rope(rope_type="new")),
        ("several media", sets("model", multimodal_config=SimpleNamespace())),
        (
            "its code reads it",
            lambda made: setattr(made.model.hf_config, "architectures", ["DeepseekV2ForCausalLM"]),
        ),
        (
            "code that it builds on reads it",
            lambda made: setattr(
                made.model.hf_config, "architectures", ["MistralLarge3ForCausalLM"]
            ),
        ),
        (
            "its code is not known",
            lambda made: setattr(made.model.hf_config, "architectures", ["Mine"]),
        ),
    ],
)
def test_the_longest_prompt_counts_where_keys_may_depend_on_it(why: str, change: Change) -> None:
    made = Described()
    change(made)
    assert length_that_counts(made.model) == 8192, why


def test_the_longest_prompt_does_not_count_for_plain_rope_in_old_words() -> None:
    made = Described()
    made.model.hf_config = SimpleNamespace(
        architectures=["LlamaForCausalLM"], rope_scaling={"type": "linear", "factor": 2}
    )
    assert length_that_counts(made.model) is None
