"""Experts over several engines: vLLM's real data-parallel loop keeps them in step, and kvtier adds no pass and leaves none out.

Each pass of a mixture of experts is one of all engines together: an idle one takes part with a batch of nothing. Where
one engine made a pass more than the other, both would wait for ever.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import ParallelConfig
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import DPEngineCoreProc, EngineShutdownState

from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import FULL
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny
from tests.patience import HANG_S, until

HIT = 192  # of 200 tokens


class Meeting:
    """What all engines say to each other after a pass, in place of vLLM's all-reduce."""

    def __init__(self, engines: int) -> None:
        self._barrier = threading.Barrier(engines)
        self._said: dict[int, tuple[bool, int]] = {}

    def sync(self, core: "Core", unfinished: bool) -> bool:
        """Wait for all, and say whether any has requests; each has made as many passes."""
        self._said[core.dp_rank] = (unfinished, core.passes)
        self._barrier.wait(HANG_S)
        said = list(self._said.values())
        self._barrier.wait(HANG_S)
        assert len({passes for _, passes in said}) == 1, said
        return any(unfinished for unfinished, _ in said)


class Core(DPEngineCoreProc):  # type: ignore[misc] # vLLM has no types
    """vLLM's loop of one engine, around an engine without a model."""

    def __init__(self, engine: NoModelEngine, rank: int, meeting: Meeting) -> None:
        self.engine, self.dp_rank, self.engine_index = engine, rank, rank
        self.dp_group = SimpleNamespace(core=self, meeting=meeting)
        self.passes = self.dummies = self.empty = 0
        self.failed: list[BaseException] = []
        self.scheduler, self.vllm_config = engine.scheduler, engine.scheduler.vllm_config
        self.model_executor = SimpleNamespace(
            is_sleeping=False, execute_model=self._execute, execute_dummy_batch=self._dummy
        )
        self.step_fn, self.batch_queue = self.step, None
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.output_queue: queue.Queue[Any] = queue.Queue()
        self.aborts_queue: queue.Queue[Any] = queue.Queue()
        self.shutdown_state = EngineShutdownState.RUNNING
        self.process_input_queue_block = self.has_coordinator = True
        self.engines_running = self.pending_pause = self.ignore_start_dp_wave = False
        self.publish_dp_lb_stats = self.log_stats = self.check_for_draft_tokens = False
        self.prefill_schedule_interval, self.dp_sync_interval = 0, 1
        self.step_counter = self.current_wave = self._weight_version = 0
        self.eep_scaling_state = None
        self._idle_state_callbacks: list[Any] = []
        self.fault_tolerance_config = None
        self._thread = threading.Thread(target=self._run, name=f"engine {rank}", daemon=True)
        self._thread.start()

    def tell(self, kind: EngineCoreRequestType, what: object = None) -> None:
        """Put what a client or the coordinator says into the loop's queue."""
        self.input_queue.put((kind, what))

    def calm(self) -> bool:
        """Whether the loop waits for requests."""
        return not (self.has_work() or self.input_queue.qsize())

    def close(self) -> None:
        """End the loop."""
        self.shutdown_state = EngineShutdownState.SHUTTING_DOWN
        self.tell(EngineCoreRequestType.WAKEUP)
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        assert not self.failed, self.failed

    def _handle_shutdown(self) -> bool:
        return bool(self.is_running())

    def _run(self) -> None:
        try:
            self.run_busy_loop()
        except SystemExit:
            pass
        except BaseException as exc:
            self.failed.append(exc)

    def _execute(self, out: Any, non_block: bool) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(self.engine.execute(out))
        self.passes += out.total_num_scheduled_tokens > 0
        self.empty += not out.total_num_scheduled_tokens
        return done

    def _dummy(self) -> None:
        self.passes += 1
        self.dummies += 1


class Service:
    """Two engines and their coordinator."""

    def __init__(self, cores: list[Core]) -> None:
        self.cores = cores

    def ask(self, *asked: tuple[int, list[int]]) -> list[int]:
        """Send these prompts to those engines at once: how many tokens of each were not computed."""
        wave = max(core.current_wave for core in self.cores)
        sent = [
            (self.cores[rank], self.cores[rank].engine.request(prompt)) for rank, prompt in asked
        ]
        for core, request in sent:
            core.tell(EngineCoreRequestType.ADD, (request, wave))
        for core in self.cores:
            core.tell(EngineCoreRequestType.START_DP_WAVE, (wave, -1))
        self._wait(lambda: all(request.is_finished() for _, request in sent))
        self._wait(lambda: all(core.calm() for core in self.cores))
        return [core.engine.cached(request) for core, request in sent]

    def reset(self) -> None:
        """Empty the devices' own caches."""
        for core in self.cores:
            core.engine.reset()

    def _wait(self, done: Callable[[], bool]) -> None:
        until(lambda: done() or any(core.failed for core in self.cores), "the engines rest")
        assert not [core.failed for core in self.cores if core.failed]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Service]]:
    """Start two engines; the next two find what these have written."""

    def sync(group: Any, has_unfinished: bool, pending_pause: bool) -> tuple[bool, bool]:
        return group.meeting.sync(group.core, has_unfinished), False

    monkeypatch.setattr(ParallelConfig, "sync_dp_state", staticmethod(sync))
    model = tiny.make(tmp_path, "mixtral")
    kvtier = nvme(tmp_path / "kv", dram_capacity="4MiB", write="through") | {"chunk_tokens": 32}
    with ExitStack() as stack:

        def start() -> Service:
            stack.close()
            meeting, cores = Meeting(2), []
            for rank in range(2):
                engine = NoModelEngine(
                    model,
                    {"layers.0": FULL, "layers.1": FULL},
                    kvtier,
                    blocks=128,
                    data_parallel_size=2,
                    data_parallel_rank=rank,
                )
                stack.enter_context(closing(engine))
                engine.settle()
                cores.append(Core(engine, rank, meeting))
                stack.callback(cores[-1].close)
            return Service(cores)

        yield start


def test_an_idle_engine_takes_part_and_keeps_its_cache(start: Callable[[], Service]) -> None:
    one, other, third = prompts(3, 200, seed=8)
    for cached in (0, HIT):
        service = start()
        first, second = service.cores
        assert service.ask((0, one)) == [cached]
        assert first.dummies < second.dummies == second.passes > 0
        service.reset()
        assert service.ask((0, one), (1, other), (1, third)) == [HIT, cached, cached]
        service.reset()
        assert service.ask((1, other), (1, one)) == [HIT, HIT if cached else 0]
        service.reset()
        assert service.ask((1, other)) == [HIT]
        assert min(first.dummies, first.empty) > 0, "a step of kvtier alone is no pass"
        for core in service.cores:
            core.engine.settle()
            core.engine.connector.scheduling.brain.check()
