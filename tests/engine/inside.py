"""What tests run inside the engine's process, by `engine.call("tests.engine.inside:name", ...)`."""

import time
from typing import Any

from tests.engine.faults import brain_of, core_of, settle, step_until
from tests.patience import HANG_S


def connector(llm: Any) -> Any:
    """Reach our connector; only where the scheduler runs in the driver's process."""
    return core_of(llm).scheduler.connector


def check(llm: Any) -> dict[str, Any]:
    """Assert the brain's invariants and return what must be nothing when the engine is idle."""
    brain = connector(llm).scheduling.brain
    brain.check()
    stats = brain.stats()
    return {
        "pinned": stats.pinned,
        "reading": stats.reading,
        "quarantined": stats.quarantined_slots,
        "requests": stats.requests,
    }


def reports_kept(llm: Any) -> int:
    """How many requests something is kept of for a report; when the engine is idle there are none."""
    books = connector(llm).scheduling.prompts
    return len(books._open) + len(books._waiting) + len(books._reports)


def idle(llm: Any) -> dict[str, Any]:
    """Step until all that was ordered is done, and the engine while it wants to be stepped, then `check`."""
    settle(llm)
    return idle_now(llm)


def idle_now(llm: Any) -> dict[str, Any]:
    """Step the engine while it wants to be stepped, then `check`."""
    core = core_of(llm)
    end = time.monotonic() + HANG_S
    while (core.scheduler.has_requests() or core.batch_queue) and time.monotonic() < end:
        core.step_fn()
    return check(llm)


def rest(llm: Any) -> dict[str, Any]:
    """As `idle`, but writes that wait for room may go on waiting: a disk that said "full" is asked now and then."""
    step_until(llm, lambda: not set(brain_of(llm).view.pending()) - {"a write"})
    return idle_now(llm)


def reset_running(llm: Any, connector: bool) -> bool:
    """Preempt all requests and reset, with no step in flight: while one is, vLLM with a connector refuses that."""
    core = core_of(llm)
    core.pause_scheduler("keep", False)
    while core.batch_queue:
        llm.llm_engine.step()  # the requests keep what it computed
    try:
        return bool(llm.reset_prefix_cache(True, connector))
    finally:
        core.resume_scheduler()


def salted(llm: Any, prompts: list[list[int]], salt: str, tokens: int) -> list[list[Any]]:
    """Generate with a cache salt: tokens and cached tokens of each."""
    from tests.engine.driver import sampling

    inputs = [{"prompt_token_ids": prompt, "cache_salt": salt} for prompt in prompts]
    outputs = llm.generate(inputs, sampling(tokens, {}), use_tqdm=False)
    return [[list(o.outputs[0].token_ids), o.num_cached_tokens] for o in outputs]


def embed(llm: Any, prompts: list[list[int]]) -> list[list[float]]:
    """The embeddings of prompts."""
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(o.outputs.embedding) for o in llm.embed(inputs, use_tqdm=False)]


def hinted(llm: Any, prompts: list[list[int]], hints: dict[str, Any], tokens: int) -> list[Any]:
    """Generate with hints in `kv_transfer_params`: tokens and cached tokens of each."""
    from tests.engine.driver import sampling

    options = {"extra_args": {"kv_transfer_params": hints}}
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(inputs, sampling(tokens, options), use_tqdm=False)
    return [[list(o.outputs[0].token_ids), o.num_cached_tokens] for o in outputs]


def adapted(
    llm: Any,
    prompt: list[int],
    path: str,
    in_place: bool,
    hints: dict[str, Any],
    tokens: int,
    number: int = 1,
) -> list[Any]:
    """Generate with the LoRA adapter of this number at `path`: tokens and cached tokens."""
    from vllm.lora.request import LoRARequest

    from tests.engine.driver import sampling

    options = {"extra_args": {"kv_transfer_params": {"kvtier": hints}}}
    (output,) = llm.generate(
        {"prompt_token_ids": prompt},
        sampling(tokens, options),
        use_tqdm=False,
        lora_request=LoRARequest(f"adapter {number}", number, path, load_inplace=in_place),
    )
    return [list(output.outputs[0].token_ids), output.num_cached_tokens]


def load_in_place(llm: Any, path: str) -> bool:
    """Load the LoRA adapter at `path` again."""
    from vllm.lora.request import LoRARequest

    return bool(llm.llm_engine.add_lora(LoRARequest("adapter 1", 1, path, load_inplace=True)))


def policies(llm: Any) -> dict[str, Any]:
    """Which eviction policy tier 0 has, and what hooks did."""
    brain = connector(llm).scheduling.brain
    stats = brain.stats()
    return {
        "policy": type(brain.view.policy(0)).__name__,
        "evictions": stats.evictions,
        "hook_failures": stats.hook_failures,
        "hooks_disabled": stats.hooks_disabled,
    }


def scores(llm: Any, wanted: int) -> list[float]:
    """The scores of what tier 0 holds, once `wanted` of them differ."""
    view = connector(llm).scheduling.brain.view

    def found() -> list[float]:
        scores = map(view.score, view.keys())
        return [score for score in scores if score is not None]

    step_until(llm, lambda: len(set(found())) >= wanted)
    return found()


_HEARD: list[list[Any]] = []


def listen(llm: Any) -> None:
    """Write the hints down of every request that tier 0's policy is told of."""
    policy = connector(llm).scheduling.brain.view.policy(0)
    policy.arrived = lambda request: _HEARD.append(list(request.hints))


def heard(llm: Any) -> list[list[Any]]:
    """What `listen` wrote down."""
    return _HEARD


def pause(llm: Any) -> bool:
    """Pause the scheduler as it stands; whether it is paused."""
    core = core_of(llm)
    core.pause_scheduler("keep", False)
    return bool(core.is_scheduler_paused())


def sleep(llm: Any) -> bool:
    """Sleep lightly, requests and all; whether it sleeps."""
    llm.sleep(level=0, mode="keep")
    return bool(llm.llm_engine.is_sleeping())


def resume(llm: Any) -> None:
    """Resume after a pause."""
    core_of(llm).resume_scheduler()


def scale_weights(llm: Any, factor: float) -> int:
    """Change weights in place: what goes into every layer's attention, and so every key and value."""

    def scale(model: Any) -> int:
        return _scale(model, factor)

    return sum(llm.apply_model(scale))


def close_trace(llm: Any) -> None:
    """Let the recorder write what it has, and end it."""
    connector(llm).scheduling.close()


def scale_unheard(llm: Any, factor: float) -> None:
    """Change weights as `scale_weights` does, and past the engine: nobody hears of it."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    _scale(executor.driver_worker.get_model(), factor)


def scale_on_rank(llm: Any, rank: int, factor: float) -> list[int]:
    """Change weights as `scale_weights` does, on one rank of several."""

    def scale(worker: Any) -> int:
        return _scale(worker.get_model(), factor) if worker.rank == rank else 0

    changed: list[int] = llm.collective_rpc(scale)
    return changed


def _scale(model: Any, factor: float) -> int:
    import torch

    changed = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "input_layernorm" in name:
                parameter.mul_(factor)
                changed += 1
    return changed
