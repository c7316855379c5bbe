"""Adapters that are changed in a running server, over HTTP, as trainers do it."""

from pathlib import Path

from kvtier.demo.client import complete, connect
from kvtier.demo.server import MODEL, Server, ServerConfig
from tests.engine.conftest import ServerFactory
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, dram
from tests.engine.test_adapters import write_adapter

PROMPT = prompts(1, 660, seed=98)[0]
COMPUTED, STORED = 0, 640


def post(server: Server, path: str, **body: object) -> None:
    with connect(server.port) as http:
        http.post(path, json=body)


def ask(server: Server, model: str = MODEL) -> tuple[list[int], int]:
    """Ask, with the device's cache emptied before: the answer, and how many tokens were cached."""
    post(server, "/reset_prefix_cache")
    answer = complete(server.port, PROMPT, TOKENS, model=model)
    return answer.tokens, answer.cached


def test_an_adapter_is_loaded_in_place(serve: ServerFactory, llama: Path, tmp_path: Path) -> None:
    """All requests that the server makes for it say `load_inplace` from then on, and vLLM reads it again for each."""
    server = serve(
        ServerConfig(
            model=llama,
            blocks=40,
            max_tokens=2304,
            kvtier=dram() | {"chunk_tokens": 128},
            options=("--enable-lora", "--max-lora-rank", "8"),
            env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
        )
    )

    def load(seed: int) -> None:
        write_adapter(tmp_path / "adapter", seed)
        adapter = {"lora_name": "a", "lora_path": str(tmp_path / "adapter")}
        post(server, "/v1/load_lora_adapter", **adapter, load_inplace=True)

    load(1)
    old, _ = ask(server, "a")
    assert ask(server, "a") == (old, STORED)
    assert ask(server, "a") == (old, STORED)
    load(2)
    new, cached = ask(server, "a")
    assert cached == COMPUTED
    assert new != old
    assert ask(server, "a") == (new, COMPUTED)
    post(server, "/reset_prefix_cache?reset_external=true")
    assert ask(server, "a") == (new, COMPUTED)
    assert ask(server, "a") == (new, STORED)
