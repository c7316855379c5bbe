"""One engine of the quality bench: `python _quality.py SETUP.json OUT.npz`, a process of its own.

The beginning of every document is computed once and stored; then, with it nowhere but in the lossy tier, the
end is scored (the whole distribution of every next token) and continued greedily.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvtier.demo.server import kv_transfer_config

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

CHUNK = 128
REUSED = 384  # tokens of each document that come from the tier
ASKED = 448  # tokens before the greedy continuation
ANSWER = 64
GREEDY = 16  # documents that are continued

Tokens = Sequence[Sequence[int]]


def main(setup_path: str, out_path: str) -> None:
    """Run the engine that SETUP describes and save what it says."""
    with open(setup_path) as file:
        setup = json.load(file)
    documents: Tokens = setup["documents"]
    llm = engine(setup, blocks=12)  # two documents
    reused = 0
    if setup["kvtier"] is not None:
        reused = REUSED
        ask(llm, [each[: REUSED + 1] for each in documents], max_tokens=1)
    scored = ask(
        llm,
        documents,
        max_tokens=1,
        prompt_logprobs=-1,
        flat_logprobs=True,
        skip_reading_prefix_cache=False,
    )
    continued = ask(llm, [each[:ASKED] for each in documents[:GREEDY]], max_tokens=ANSWER)
    for output in (*scored, *continued):
        if (output.num_cached_tokens or 0) != reused:
            raise RuntimeError(f"{output.num_cached_tokens} tokens reused instead of {reused}")
    np.savez(
        out_path,
        logprobs=np.stack([_distributions(output) for output in scored]),
        answers=np.array([output.outputs[0].token_ids for output in continued]),
        **{name: np.float64(value) for name, value in tier_counts(llm).items()},
    )
    llm.llm_engine.engine_core.shutdown()


def engine(setup: dict[str, Any], blocks: int) -> "LLM":
    """Start vLLM, with kvtier or without; with few blocks its own cache forgets all but the last requests."""
    from vllm import LLM

    offload = {}
    if setup["kvtier"] is not None:
        offload = {"kv_transfer_config": kv_transfer_config(setup["kvtier"])}
    return LLM(
        model=setup["model"],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=setup["tokens"],
        block_size=CHUNK,
        num_gpu_blocks_override=blocks,
        enable_prefix_caching=setup["kvtier"] is not None,
        max_logprobs=-1,
        disable_log_stats=False,
        **offload,
    )


def ask(llm: "LLM", prompts: Tokens, max_tokens: int, **options: Any) -> "list[RequestOutput]":
    """Run the prompts one by one, greedily, so that every engine computes the same batches."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False, **options
    )
    answers = []
    for prompt in prompts:
        answers += llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
    return answers


def _distributions(output: "RequestOutput") -> npt.NDArray[np.float32]:
    """Return the log-probabilities (position, token) of every scored token."""
    flat: Any = output.prompt_logprobs
    rows = []
    for position in range(REUSED + 1, len(flat)):
        piece = slice(flat.start_indices[position], flat.end_indices[position])
        ids, values = np.array(flat.token_ids[piece]), np.array(flat.logprobs[piece])
        row = np.full(len(set(ids.tolist())), -np.inf, np.float32)
        row[ids] = values
        rows.append(row)
    return np.stack(rows)


def tier_counts(llm: "LLM") -> dict[str, float]:
    """What the tier counted: chunks and bytes that it holds, chunks that were read from it."""
    from prometheus_client import REGISTRY

    ask(llm, [[3, 1, 4]], max_tokens=1)  # a step, with which the last counts travel
    found = {"tier_chunks": 0.0, "tier_used_bytes": 0.0, "tier_reads": 0.0}
    for family in REGISTRY.collect():
        for sample in family.samples:
            name = sample.name.removeprefix("kvtier:").removesuffix("_total")
            if name in found and sample.labels.get("tier") == "cold":
                found[name] += sample.value
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
