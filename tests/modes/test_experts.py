"""A mixture of experts over two engines: while one computes, the other takes part with batches of nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvtier.demo.client import connect
from kvtier.demo.server import MODEL, Server, ServerConfig
from tests.engine.conftest import ServerFactory
from tests.engine.scenarios import nvme
from tests.modes import tiny
from tests.modes.identity import Mode


def test_experts_of_two_engines(serve: ServerFactory, tmp_path: Path) -> None:
    """Each has its own cache; what an idle one takes part with leaves that as it is."""
    mode = Mode()
    asked = mode.asked()
    server = serve(two_engines(tiny.make(tmp_path, "mixtral"), tmp_path / "kv"))

    def ask(engine: int, prompt: list[int]) -> tuple[list[int], int]:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": mode.tokens, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        with connect(server.port) as http:
            rank = {"X-data-parallel-rank": str(engine)}
            said = http.post("/v1/completions", json=body, headers=rank).json()
        details = said["usage"]["prompt_tokens_details"] or {"cached_tokens": 0}
        return said["choices"][0]["token_ids"], details["cached_tokens"]

    told = [ask(1, prompt) for prompt in asked]
    right = [answer for answer, _ in told]
    assert [cached for _, cached in told] == [0, 0, 0]
    assert len(set(map(tuple, right))) == 3
    post(server, "/reset_prefix_cache")
    own = [(0, asked[0]), (1, asked[1]), (1, asked[2])]
    with ThreadPoolExecutor(len(own)) as pool:
        for cached in (0, 512):
            assert ask(*own[0]) == (right[0], cached), "the other is idle, and has its own"
            post(server, "/reset_prefix_cache")
            said = list(pool.map(ask, *zip(*own, strict=True)))
            assert said == [(right[0], 512), (right[1], 512), (right[2], 512)]
            post(server, "/reset_prefix_cache")
    post(server, "/collective_rpc", {"method": "shift_slots", "args": [list(range(40))]})
    wrong, cached = ask(*own[0])
    assert (cached, wrong != right[0]) == (512, True)


def two_engines(model: Path, folder: Path) -> ServerConfig:
    """A server of two data-parallel engines."""
    return ServerConfig(
        model=model,
        blocks=60,
        max_tokens=2304,
        kvtier={**nvme(folder, write="through"), "chunk_tokens": 128},
        options=(
            *("--data-parallel-size", "2", "--load-format", "dummy"),
            *("--worker-extension-cls", "tests.modes.worker.Extension"),
        ),
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_SERVER_DEV_MODE": "1"},
    )


def post(server: Server, path: str, body: object = None) -> None:
    """Tell the server to do something."""
    with connect(server.port) as http:
        http.post(path, json=body)
