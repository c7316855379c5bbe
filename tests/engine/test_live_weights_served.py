"""Weights and adapters that are changed in a running server, over HTTP, as trainers do it."""

import json
from pathlib import Path

from kvtier.demo.client import complete, connect, metrics
from kvtier.demo.server import MODEL, Server, ServerConfig
from tests.engine.conftest import ServerFactory
from tests.engine.harness import ROOT
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, dram
from tests.engine.test_adapters import write_adapter
from tests.engine.trainer import BACKEND, Extension

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


def update(server: Server, *layers: int) -> None:
    post(server, "/update_weights", update_info={"layers": layers, "factor": 0.5})


def test_weights_are_updated_in_parts(serve: ServerFactory, llama: Path) -> None:
    server = serve(
        ServerConfig(
            model=llama,
            blocks=40,
            max_tokens=2304,
            kvtier=dram() | {"chunk_tokens": 128},
            options=(
                *("--worker-extension-cls", f"{Extension.__module__}.{Extension.__name__}"),
                *("--weight-transfer-config", json.dumps({"backend": BACKEND})),
            ),
            env={"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(ROOT)},
        )
    )
    old, _ = ask(server)
    assert ask(server) == (old, STORED)
    post(server, "/start_weight_update")
    update(server, 0, 1)
    between, cached = ask(server)
    assert cached == COMPUTED
    update(server, 2, 3)
    post(server, "/finish_weight_update")
    new, cached = ask(server)
    assert cached == COMPUTED
    assert ask(server) == (new, STORED)
    assert len({tuple(tokens) for tokens in (old, between, new)}) == 3
    said = metrics(server.port)
    assert 'kvtier:weight_changes_total{engine="0",model_name="demo"} 2.0' in said
    assert server.log.read_text().count("weights were changed in place") == 2


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
