"""What these tests run inside the engine's process, by `engine.call("tests.modes.inside:name", ...)`.

A question answers with one pair for each request: whatever came out, and how many prompt tokens were not computed.
"""

from typing import Any

from tests.engine.driver import sampling
from tests.engine.faults import brain_of

Pairs = list[list[Any]]


def groups(llm: Any) -> list[list[str]]:
    """The layers of each KV-cache group."""
    config = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    return [list(group.layer_names) for group in config.kv_cache_groups]


def slots(llm: Any, group: int) -> list[int]:
    """The slots of a group's chunks in tier 0."""
    view = brain_of(llm).view
    return [view.slot(key) for key in view.keys(0) if int.from_bytes(key[-4:], "big") == group]


def shift(llm: Any, slots: list[int]) -> None:
    """Give each of these slots what the next one holds: KV that is whole, and of another chunk."""
    llm.collective_rpc("shift_slots", args=(slots,))


def in_many_ways(llm: Any, prompts: list[list[int]], tokens: int) -> Pairs:
    """Ask each prompt in another way that handles its tokens or its KV otherwise than a plain request."""
    from vllm.sampling_params import StructuredOutputsParams

    letters = StructuredOutputsParams(regex="[a-f]{8,12}")
    several, scored, formal, twice, salted, beams = ([_tokens(prompt)] for prompt in prompts)
    return [
        *_ask(llm, several, tokens, n=3, temperature=1.0, top_k=1),
        *_ask(llm, scored, tokens, prompt_logprobs=1),
        *_ask(llm, formal, tokens, structured_outputs=letters, ignore_eos=False),
        *_ask(llm, twice * 3, tokens),
        *_ask(llm, [{**salted[0], "cache_salt": "one"}], tokens),
        *_ask(llm, [{**salted[0], "cache_salt": "two"}], tokens),
        *_beams(llm, beams, tokens),
    ]


def _beams(llm: Any, asked: list[dict[str, Any]], tokens: int) -> Pairs:
    """Search with beams; vLLM does not say how much of that was computed, so the prompt is asked once before."""
    from vllm.sampling_params import BeamSearchParams

    first = _ask(llm, asked, 1)
    params = BeamSearchParams(beam_width=3, max_tokens=tokens, ignore_eos=True)
    found = llm.beam_search(asked, params)
    widths = [[list(beam.tokens) for beam in each.sequences] for each in found]
    return [[beams, cached] for beams, (_, cached) in zip(widths, first, strict=True)]


def by_priority(llm: Any, prompts: list[list[int]], tokens: int) -> Pairs:
    """Ask all at once, the last one first; how much of each was computed is a matter of preemptions."""
    ranks = list(range(len(prompts), 0, -1))
    asked = _ask(llm, [_tokens(prompt) for prompt in prompts], tokens, priority=ranks)
    return [[said, 0] for said, _ in asked]


def embedded(llm: Any, lengths: list[int], tokens: int) -> Pairs:
    """Ask prompts that are embeddings."""
    import torch

    width = llm.llm_engine.model_config.get_hidden_size()
    rng = torch.Generator().manual_seed(3)
    asked = [{"prompt_embeds": torch.randn(length, width, generator=rng)} for length in lengths]
    return [_ask(llm, [each], tokens)[0] for each in asked]


def about_images(llm: Any, prompt: list[int], seeds: list[int], tokens: int) -> Pairs:
    """Ask the same of several images, one after the other."""
    import numpy as np
    from PIL import Image

    def image(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8))

    asked = [{**_tokens(prompt), "multi_modal_data": {"image": image(seed)}} for seed in seeds]
    return [_ask(llm, [each], tokens)[0] for each in asked]


def pooled(llm: Any, prompts: list[list[int]], task: str) -> Pairs:
    """Pool each prompt by itself."""
    found = []
    for prompt in prompts:
        (output,) = llm.encode([_tokens(prompt)], pooling_task=task, use_tqdm=False)
        found.append([output.outputs.data.tolist(), output.num_cached_tokens])
    return found


def _tokens(prompt: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": prompt}


def _ask(
    llm: Any,
    asked: list[dict[str, Any]],
    tokens: int,
    priority: list[int] | None = None,
    **options: Any,
) -> Pairs:
    params = sampling(tokens, options)
    outputs = llm.generate(asked, params, use_tqdm=False, priority=priority)
    return [
        [[list(choice.token_ids) for choice in output.outputs], output.num_cached_tokens or 0]
        for output in outputs
    ]
