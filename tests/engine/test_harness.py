"""The harness keeps its own promises, on vLLM alone: low-level steps, a real server, nothing left behind."""

from pathlib import Path

import pytest

from kvtier.demo.client import complete, metrics
from kvtier.demo.process import session
from kvtier.demo.server import ServerConfig
from tests.engine.conftest import EngineFactory, ServerFactory
from tests.engine.harness import Engine, EngineConfig, EngineError
from tests.engine.models import prompts


@pytest.fixture(scope="module")
def stepped(engine: EngineFactory, llama: Path) -> Engine:
    return engine(EngineConfig(model=llama, in_process=True))


def test_requests_move_step_by_step_and_abort_at_once(stepped: Engine) -> None:
    kept, dropped = prompts(2, 300, seed=1)
    before = stepped.metrics()
    expected = stepped.generate([kept], 8)[0]
    stepped.add("kept", kept, 8)
    stepped.add("dropped", dropped, 1000)
    assert not stepped.step()["kept"].finished
    stepped.abort("dropped")
    answers = stepped.drain()
    assert stepped.unfinished() == 0
    assert answers["kept"].tokens == expected
    assert answers["kept"].cached == 256
    name = 'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}'
    assert stepped.metrics()[name] - before[name] == 256


def test_a_callback_runs_beside_the_engine(stepped: Engine) -> None:
    assert stepped.call("tests.engine.test_harness:blocks_of") == 40
    with pytest.raises(EngineError, match="KeyError: 'no such'"):
        stepped.call("tests.engine.test_harness:fail", "no such")


def blocks_of(llm: object) -> int:
    core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined] # vLLM is untyped here
    return int(core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)


def fail(_: object, word: str) -> None:
    raise KeyError(word)


def test_a_late_answer_ends_the_engine_and_all_that_it_started(
    engine: EngineFactory, llama: Path
) -> None:
    late = engine(EngineConfig(model=llama))
    with pytest.raises(EngineError, match=r"no answer to generate in 0\.001 s"):
        late.generate(prompts(4, 2000), 200, timeout_s=0.001)
    assert session(late.process.pid) == []


def test_a_server_streams_and_leaves(serve: ServerFactory, llama: Path) -> None:
    server = serve(ServerConfig(model=llama, blocks=40, max_tokens=2304))
    prompt = prompts(1, 1000, seed=3)[0]
    first, second = (complete(server.port, prompt, 16) for _ in range(2))
    assert len(first.tokens) == 16
    assert first.tokens == second.tokens
    assert (first.cached, second.cached) == (0, 896)
    assert 0 < second.ttft_s <= second.seconds
    assert "vllm:prompt_tokens_by_source_total" in metrics(server.port)
    assert server.close(), "it had to be killed"
