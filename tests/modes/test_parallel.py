"""Several ranks, each with its part of every chunk; several engines, each with its own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvtier.demo.client import connect
from kvtier.demo.server import MODEL, ServerConfig
from tests.engine.conftest import EngineFactory, ServerFactory
from tests.engine.scenarios import nvme
from tests.modes import tiny
from tests.modes.identity import Mode, check

CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}

ENGINES = {
    "tensor parallel": Mode(tp=2),
    # vLLM's CPU build alone runs no pipeline with runner V1
    "pipeline": Mode(
        lane="v2-sync", options={"pipeline_parallel_size": 2}, env=CORES, length=300, tokens=6
    ),
    "asynchronous pipeline": Mode(
        lane="v2-async", options={"pipeline_parallel_size": 2}, env=CORES, length=300, tokens=6
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks(name: str, engine: EngineFactory, tmp_path: Path) -> None:
    check(engine, ENGINES[name], tiny.make(tmp_path, "llama"), tmp_path / "kv")


def test_experts_of_two_engines(
    engine: EngineFactory, serve: ServerFactory, tmp_path: Path
) -> None:
    """Each has its own cache; while one computes, the other takes part with batches of nothing."""
    mode, model = Mode(), tiny.make(tmp_path, "mixtral")
    alone = engine(mode.alone(model))
    asked, right = mode.asked(), mode.one_by_one(alone).answers
    alone.close()
    server = serve(
        ServerConfig(
            model=model,
            blocks=60,
            max_tokens=2304,
            kvtier={**nvme(tmp_path / "kv", write="through"), "chunk_tokens": 128},
            options=(
                *("--data-parallel-size", "2", "--load-format", "dummy"),
                *("--worker-extension-cls", "tests.modes.worker.Extension"),
            ),
            env={**CORES, "VLLM_SERVER_DEV_MODE": "1"},
        )
    )

    def ask(engine: int, prompt: list[int]) -> tuple[list[int], int]:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": mode.tokens, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        with connect(server.port) as http:
            rank = {"X-data-parallel-rank": str(engine)}
            said = http.post("/v1/completions", json=body, headers=rank).json()
        details = said["usage"]["prompt_tokens_details"] or {"cached_tokens": 0}
        return said["choices"][0]["token_ids"], details["cached_tokens"]

    def post(path: str, body: object = None) -> None:
        with connect(server.port) as http:
            http.post(path, json=body)

    own = [(0, asked[0]), (1, asked[1]), (1, asked[2])]
    with ThreadPoolExecutor(len(own)) as pool:
        for cached in (0, 512):
            assert ask(*own[0]) == (right[0], cached), "the other is idle"
            post("/reset_prefix_cache")
            told = list(pool.map(ask, *zip(*own, strict=True)))
            assert told == [(right[0], 512), (right[1], cached), (right[2], cached)]
            post("/reset_prefix_cache")
    assert ask(1, asked[0]) == (right[0], 0), "the other's"
    post("/reset_prefix_cache")
    post("/collective_rpc", {"method": "shift_slots", "args": [list(range(40))]})
    wrong, cached = ask(*own[0])
    assert (cached, wrong != right[0]) == (512, True)
