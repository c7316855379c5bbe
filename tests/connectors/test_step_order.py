"""In which order a step reaches a rank's I/O process, and which step brings the answer back."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.messages import KVTierMetadata
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.types import OpKind, OpResult, OpStatus, TierOp
from tests.connectors import halves


class Io:
    """An I/O process that answers when it is told to."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._asked: list[TierOp] = []
        self._answers: list[OpResult] = []

    def submit(self, ops: Sequence[TierOp]) -> None:
        self._log.append(f"operations {[op.op for op in ops]}")
        self._asked += ops

    def work(self) -> None:
        self._answers += [OpResult(0, op.op, OpStatus.OK) for op in self._asked]
        self._asked.clear()

    def poll(self) -> list[OpResult]:
        answers, self._answers = self._answers, []
        return answers


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What vLLM's own half is asked to do."""
    said: list[str] = []

    def told(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: said.append(name)

    for name in ("handle_preemptions", "bind_connector_metadata", "start_load_kv"):
        monkeypatch.setattr(OffloadingConnector, name, told(name))
    monkeypatch.setattr(OffloadingConnector, "build_connector_worker_meta", lambda self: None)
    return said


def connector(worker: KVTierWorker) -> Any:
    made: Any = object.__new__(KVTierConnector)
    made._rank = halves.rank(worker)
    return made


def test_what_is_answered_during_the_pass_returns_with_its_step(log: list[str]) -> None:
    io = Io(log)
    worker = halves.worker(
        SimpleNamespace(
            launched=lambda: None,
            launching=lambda: log.append("the event that loads wait for"),
            beside=False,
        )
    )
    worker.io, worker.placed = io, list  # type: ignore[method-assign,assignment]
    worker.io_seconds = dict  # type: ignore[method-assign]
    worker.fail_loads = lambda: log.append("loads fail")  # type: ignore[method-assign]
    made = connector(worker)
    step = KVTierMetadata({}, {}, None, ops=[TierOp(7, OpKind.READ)], fail_loads=True)
    made.handle_preemptions(step)
    made.bind_connector_metadata(step)
    log.append("pass")
    io.work()
    made.start_load_kv(None)
    answer = made.build_connector_worker_meta()
    assert [result.op for result in answer.results] == [7]
    assert log == [
        *("loads fail", "handle_preemptions", "bind_connector_metadata", "operations [7]"),
        *("the event that loads wait for", "pass", "start_load_kv"),
    ]


def test_of_many_operations_most_follow_behind_the_pass(log: list[str]) -> None:
    worker = halves.worker(
        SimpleNamespace(launched=lambda: None, launching=lambda: None, beside=False)
    )
    worker.io = Io(log)  # type: ignore[assignment]
    made = connector(worker)
    step = KVTierMetadata({}, {}, None, ops=[TierOp(i, OpKind.READ) for i in range(66)])
    for _ in range(2):  # the second has none
        made.bind_connector_metadata(step)
        log.append("pass")
        made.start_load_kv(None)
        step = KVTierMetadata({}, {}, None)
    assert log == [
        *("bind_connector_metadata", f"operations {list(range(64))}"),
        *("pass", "operations [64, 65]", "start_load_kv"),
        *("bind_connector_metadata", "pass", "start_load_kv"),
    ]


def test_a_step_that_ends_early_loses_no_operation(log: list[str]) -> None:
    worker = halves.worker(
        SimpleNamespace(launched=lambda: None, launching=lambda: None, beside=False)
    )
    worker.io = Io(log)  # type: ignore[assignment]
    made = connector(worker)
    for first in (0, 70):
        ops = [TierOp(i, OpKind.READ) for i in range(first, first + 66)]
        made.bind_connector_metadata(KVTierMetadata({}, {}, None, ops=ops))
    assert log == [
        *("bind_connector_metadata", f"operations {list(range(64))}"),
        *("bind_connector_metadata", "operations [64, 65]", f"operations {list(range(70, 134))}"),
    ]
