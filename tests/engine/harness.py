"""A real engine under test: started in a process of its own, called with a deadline, gone without a trace."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from kvtier.demo.process import end_session
from kvtier.demo.server import kv_transfer_config
from tests.engine import lanes, nursery
from tests.patience import HANG_S

ROOT = Path(__file__).parents[2]
START_S = CALL_S = 2 * HANG_S  # whatever waits inside gives up before, in its own words
LEAVE_S = HANG_S


class EngineError(Exception):
    """The engine's process failed, or did not answer in time; with the end of its log."""


class Answer(NamedTuple):
    """One request as its last output shows it."""

    tokens: list[int]
    cached: (
        int  # prompt tokens that were not computed: from the device's prefix cache or a connector
    )
    finished: bool
    reason: str | None
    told: dict[str, Any] | None = None  # its `kv_transfer_params`


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What makes an engine; equal configurations share one."""

    model: Path
    kvtier: Mapping[str, Any] | str | None = None  # kvtier's configuration; None: vLLM alone
    blocks: int = 40  # of 128 tokens
    tp: int = 1
    lane: str | None = None  # of `lanes.LANES`; None: whichever the tests run in
    fresh: bool = (
        False  # Python starts anew, with a hash seed of its own; else a fork, in half the time
    )
    in_process: bool = False  # the scheduler in the driver's process: one `step` is one engine step
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of vllm.LLM
    env: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `vllm.LLM`."""
        arguments: dict[str, Any] = {
            "model": str(self.model),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2304,
            "max_num_batched_tokens": 1024,
            "num_gpu_blocks_override": self.blocks,
            "tensor_parallel_size": self.tp,
            "disable_log_stats": False,
        }
        if self.kvtier is not None:
            arguments["kv_transfer_config"] = kv_transfer_config(self.kvtier)
        return arguments | dict(self.options)

    def environ(self) -> dict[str, str]:
        """The environment of its process."""
        env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        env["VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"] = f"{HANG_S / 4:.0f}"
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env |= lanes.environ(self.lane or lanes.DEFAULT)
        if self.in_process:
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if self.tp == 2:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
        return env | dict(self.env)


class Engine:
    """A running engine. Single-threaded, as vLLM's offline engine is."""

    def __init__(self, config: EngineConfig, log: Path) -> None:
        self.config = config
        self.log = log
        read_fd, write_fd = os.pipe()
        self._replies = os.fdopen(read_fd, "rb", buffering=0)
        self._unread = b""
        try:
            with log.open("wb") as out:
                self.process = _start(config, write_fd, out)
        finally:
            os.close(write_fd)
        try:
            self._send(config.arguments())
            self._receive("its start", START_S)
        except BaseException:
            self.kill()
            raise

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 32,
        *,
        timeout_s: float = CALL_S,
        **sampling: object,
    ) -> list[list[int]]:
        """Run all prompts at once, greedily unless `sampling` says otherwise: the tokens of each."""
        answers = self.answers(prompts, max_tokens, timeout_s=timeout_s, **sampling)
        return [answer.tokens for answer in answers]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 32,
        *,
        timeout_s: float = CALL_S,
        **sampling: object,
    ) -> list[Answer]:
        """Run as `generate` does, and say how each request went."""
        args = {"prompts": prompts, "max_tokens": max_tokens, "options": sampling}
        return [Answer(**each) for each in self._call("generate", timeout_s, **args)]

    def add(
        self, request: str, prompt: Sequence[int], max_tokens: int = 32, **sampling: object
    ) -> None:
        """Queue one request."""
        self._call("add", request=request, prompt=prompt, max_tokens=max_tokens, options=sampling)

    def step(self, timeout_s: float = CALL_S) -> dict[str, Answer]:
        """Wait for the engine's next outputs. In process: run one step, which may have none."""
        return {name: Answer(**each) for name, each in self._call("step", timeout_s).items()}

    def drain(self, max_steps: int = 100_000, timeout_s: float = CALL_S) -> dict[str, Answer]:
        """Step until all requests are finished: the last state of each."""
        answers = self._call("drain", timeout_s, max_steps=max_steps)
        return {name: Answer(**each) for name, each in answers.items()}

    def abort(self, request: str) -> None:
        """Abort a request, whatever it is doing."""
        self._call("abort", request=request)

    def unfinished(self) -> int:
        """Count the requests that are not finished."""
        return int(self._call("unfinished"))

    def reset(self, *, running: bool = False, connector: bool = False) -> bool:
        """Empty the device's prefix cache, and the connector's with `connector`; False: refused."""
        return bool(self._call("reset", running=running, connector=connector))

    def sleep(self, level: int = 1) -> None:
        """Put the engine to sleep."""
        self._call("sleep", level=level)

    def wake_up(self) -> None:
        """Wake it up."""
        self._call("wake_up")

    def metrics(self) -> dict[str, float]:
        """All samples of the driver's Prometheus registry, such as `vllm:prefix_cache_hits_total`.

        Labels follow the name in braces, without the engine's index and the model's name.
        """
        return dict(self._call("metrics"))

    def call(self, target: str, *args: object, timeout_s: float = CALL_S) -> Any:
        """Call `package.module:function(llm, *args)` in the engine's process; JSON both ways."""
        return self._call("call", timeout_s, target=target, args=args)

    def log_tail(self, lines: int = 60) -> str:
        """The end of what the engine logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Stop it the polite way; what stays is killed, and that is an error. Idempotent."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if left := self.kill(LEAVE_S):
            raise EngineError(f"still there after {LEAVE_S:.0f} s: {left}\n{self.log_tail()}")

    def kill(self, grace_s: float = 0.0) -> list[str]:
        """End every process of its session, and return which had to be killed; idempotent."""
        killed = end_session(self.process, grace_s)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self._replies.close()
        return killed

    def _call(self, method: str, timeout_s: float = CALL_S, **args: object) -> Any:
        self._send({"method": method, "args": args})
        return self._receive(method, timeout_s)

    def _send(self, message: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(self.log_tail()) from error

    def _receive(self, asked: str, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select(
                [self._replies], [], [], max(0, deadline - time.monotonic())
            )
            data = self._replies.read(1 << 20) if ready else b""
            if not data:
                self.kill()
                why = "its process ended" if ready else f"no answer to {asked} in {timeout_s} s"
                raise EngineError(f"{why}\n{self.log_tail()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{reply['error']}\n{self.log_tail()}")
        return reply["result"]


def _start(config: EngineConfig, replies: int, output: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a driver in a session of its own, which finds all that it leaves behind."""
    bound = "VLLM_CPU_OMP_THREADS_BIND" in config.environ()  # which OpenMP reads when Python starts
    if not (config.fresh or bound):
        return nursery.Forked(config.lane or lanes.DEFAULT, replies, config.environ(), output)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engine.driver", str(replies)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[replies],
        start_new_session=True,
        cwd=ROOT,
        env=config.environ(),
    )
