"""The other end of `harness.Engine`: one vLLM engine in a process of its own, driven line by line.

`python -m tests.engine.driver REPLY_FD` reads the engine's arguments and then one JSON command per
line from stdin, and answers each with one JSON line on REPLY_FD. It leaves on EOF.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.engine import lanes
from tests.patience import HANG_S

if __name__ in ("__main__", "__mp_main__"):  # the engine's process, and those that it spawns
    lanes.enter()

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams


def sampling(max_tokens: int, options: dict[str, Any]) -> "SamplingParams":
    """Greedy and of fixed length, unless `options` say otherwise."""
    from vllm import SamplingParams

    fields: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
    return SamplingParams(**(fields | options))


def answer(output: "RequestOutput") -> dict[str, Any]:
    """What a test wants to know of one request so far."""
    choice = output.outputs[0]
    return {
        "tokens": list(choice.token_ids),
        "cached": output.num_cached_tokens or 0,
        "finished": output.finished,
        "reason": choice.finish_reason,
        "told": output.kv_transfer_params,
    }


class Driver:
    """Each public method is a command."""

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm
        self._engine = llm.llm_engine
        self._names: dict[str, str] = {}

    def generate(
        self, prompts: list[list[int]], max_tokens: int, options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Run all prompts at once, to the end."""
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(inputs, sampling(max_tokens, options), use_tqdm=False)
        return [answer(output) for output in outputs]

    def add(
        self, request: str, prompt: list[int], max_tokens: int, options: dict[str, Any]
    ) -> None:
        """Queue one request; `step` moves it."""
        params = sampling(max_tokens, options)
        name = self._engine.add_request(request, {"prompt_token_ids": prompt}, params)
        self._names[name] = request

    def step(self) -> dict[str, dict[str, Any]]:
        """Wait for the engine's next outputs: what changed, by request."""
        return self._answers(self._engine.step())

    def drain(self, max_steps: int) -> dict[str, dict[str, Any]]:
        """Step until nothing is unfinished: the last state of every request."""
        answers: dict[str, dict[str, Any]] = {}
        for _ in range(max_steps):
            if not self._engine.has_unfinished_requests():
                break
            answers |= self.step()
        return answers

    def abort(self, request: str) -> None:
        """Abort a request that `add` queued."""
        names = [name for name, given in self._names.items() if given == request]
        self._engine.abort_request(names, internal=True)

    def unfinished(self) -> int:
        """How many requests are not finished."""
        return int(self._engine.get_num_unfinished_requests())

    def reset(self, running: bool, connector: bool) -> bool:
        """Call `reset_prefix_cache`."""
        return bool(self.llm.reset_prefix_cache(running, connector))

    def sleep(self, level: int) -> None:
        """Call `sleep`."""
        self.llm.sleep(level=level)

    def wake_up(self) -> None:
        """Call `wake_up`."""
        self.llm.wake_up()

    def metrics(self) -> dict[str, float]:
        """Every counter and gauge of the process, by name with its labels, as Prometheus writes it."""
        from prometheus_client import REGISTRY

        return {
            sample.name + _labels(sample.labels): sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
        }

    def call(self, target: str, args: list[Any]) -> Any:
        """Call `package.module:function(llm, *args)` here; its result must be JSON."""
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(self.llm, *args)

    def _answers(self, outputs: "Iterable[RequestOutput]") -> dict[str, dict[str, Any]]:
        return {
            self._names.get(output.request_id, output.request_id): answer(output)
            for output in outputs
        }


def _labels(labels: dict[str, str]) -> str:
    kept = sorted((k, v) for k, v in labels.items() if k not in ("engine", "model_name"))
    return "{" + ",".join(f'{k}="{v}"' for k, v in kept) + "}" if kept else ""


def drive(replies_fd: int) -> None:
    """Start the engine, then serve commands until EOF."""
    replies = os.fdopen(replies_fd, "w", closefd=False)

    def reply(make: Callable[[], Any]) -> None:
        try:
            line = json.dumps({"result": make()})
        except Exception:
            line = json.dumps({"error": traceback.format_exc()})
        print(line, file=replies, flush=True)

    from vllm import LLM

    llm: Any = None

    def start() -> None:
        nonlocal llm
        llm = LLM(**json.loads(sys.stdin.readline()))

    reply(start)
    if llm is not None:
        driver = Driver(llm)
        for line in sys.stdin:
            command = json.loads(line)
            reply(partial(getattr(driver, command["method"]), **command["args"]))
        llm.llm_engine.engine_core.shutdown(timeout=HANG_S / 2)  # after 5 s vLLM would kill it


if __name__ == "__main__":
    drive(int(sys.argv[1]))
