"""The lanes: in which ways vLLM runs an engine. On CUDA it runs runner V2, asynchronously; its CPU build runs V1, synchronously.

Triton's interpreter stands for the compiler that V2's kernels need. What runs here is therefore V2 itself and its
kernels, on CPU tensors and in one order; streams, graphs and compiled kernels of a GPU are not seen.
"""

import importlib
import os
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

NAME = "KVTIER_TEST_LANE"  # the environment's, for every process of an engine


class Lane(NamedTuple):
    """One way."""

    v2: bool
    asynchronous: bool

    @property
    def runner(self) -> str:
        """The module of its model runner."""
        return f"vllm.v1.worker.cpu{'.' if self.v2 else '_'}model_runner"

    @property
    def scheduler(self) -> str:
        """Its scheduler."""
        return "AsyncScheduler" if self.asynchronous else "Scheduler"


LANES = {
    "v1-sync": Lane(v2=False, asynchronous=False),
    "v1-async": Lane(v2=False, asynchronous=True),
    "v2-sync": Lane(v2=True, asynchronous=False),
    "v2-async": Lane(v2=True, asynchronous=True),
}
DEFAULT = "v1-sync"


def environ(name: str) -> dict[str, str]:
    """Give what an engine's processes need in their environment."""
    v2 = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    v1 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    return {NAME: name} | (v2 if LANES[name].v2 else v1)


def enter() -> None:
    """Take the lane that the environment names, in this process, before it imports vLLM."""
    prepare()
    take()


def prepare() -> None:
    """Do that part of it which cannot wait until vLLM is imported; it is the same for both ways of scheduling."""
    if (name := os.environ.get(NAME)) is None:
        return
    assert "vllm" not in sys.modules
    if LANES[name].v2:
        _let_triton_interpret()


def take() -> None:
    """Do the rest of it."""
    if (name := os.environ.get(NAME)) is None:
        return
    lane = LANES[name]
    if lane.asynchronous:
        _schedule_asynchronously()
    _prove(lane)


class _Interpreter:
    """Triton's driver of the interpreter: there is nothing to drive."""

    @staticmethod
    def is_active() -> bool:
        return True


def _let_triton_interpret() -> None:
    """Have vLLM find a Triton that it can use on a CPU."""
    backends: Any = importlib.import_module("triton.backends").backends
    here = SimpleNamespace(driver=_Interpreter, compiler=None)
    backends["cpu"] = here  # a CPU build looks for this name
    backends["interpreter"] = here  # and any other for one name that is not this


def _schedule_asynchronously() -> None:
    """Undo the one line by which vLLM's CPU platform switches asynchronous scheduling off."""
    platform: Any = importlib.import_module("vllm.platforms.cpu").CpuPlatform
    check = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    platform.check_and_update_config = classmethod(check_and_update_config)


def _prove(lane: Lane) -> None:
    """Let no engine start that runs otherwise than the lane says."""
    core: Any = importlib.import_module("vllm.v1.engine.core").EngineCore
    start = core.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        assert type(self.scheduler).__name__ == lane.scheduler, type(self.scheduler)
        assert (self.batch_queue is not None) == lane.asynchronous, "nothing runs ahead"
        runners = set(self.model_executor.collective_rpc(runner_of))
        assert runners == {lane.runner}, runners

    core.__init__ = __init__


def runner_of(worker: Any) -> str:
    """Say in which module a worker's model runner is defined."""
    found: str = type(worker.model_runner).__module__
    return found
