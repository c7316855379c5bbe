"""The few HTTP calls that the demo makes: a streamed completion, tokenize, metrics."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import httpx

from kvtier.demo.server import MODEL, ServerError

TIMEOUT_S = 120.0  # to connect, and from one piece of an answer to the next


class Completion(NamedTuple):
    """One answer and how long it took."""

    tokens: list[int]
    ttft_s: float  # from the request to its first token
    seconds: float
    cached: int  # prompt tokens that the engine did not compute


def complete(
    port: int, prompt: Sequence[int], max_tokens: int, *, model: str = MODEL
) -> Completion:
    """Stream one greedy completion of fixed length."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    tokens: list[int] = []
    first_s, cached = 0.0, 0
    with connect(port) as http:
        started = time.perf_counter()
        with http.stream("POST", "/v1/completions", json=body) as response:
            for more, hit in _events(response):
                tokens += more
                cached = max(cached, hit)
                if tokens and not first_s:
                    first_s = time.perf_counter() - started
    return Completion(tokens, first_s, time.perf_counter() - started, cached)


def tokenize(port: int, text: str) -> list[int]:
    """The tokens of `text` in the server's own vocabulary."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    with connect(port) as http:
        return list(http.post("/tokenize", json=body).json()["tokens"])


def metrics(port: int) -> str:
    """What `/metrics` says, in Prometheus' text format."""
    with connect(port) as http:
        return http.get("/metrics").text


def connect(port: int) -> httpx.Client:
    """Make a client that raises ServerError for a status that is no success."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},  # the engine needs the CPU
        trust_env=False,  # no proxy on the way to loopback
        verify=False,  # reading the certificates takes 50 ms
        event_hooks={"response": [_check]},
    )


def _check(response: httpx.Response) -> None:
    if not response.is_success:
        said = response.read()[:500].decode(errors="replace")
        raise ServerError(f"{response.url.path}: {response.status_code} {said}")


def _events(response: httpx.Response) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens of each event, and how many tokens of the prompt it says were cached."""
    response.encoding = "ascii"  # for iter_lines, which would end a line at a U+2028 in a text
    for line in response.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise ServerError(f"{event['error']}")
        tokens = [token for choice in event["choices"] for token in choice["token_ids"] or ()]
        usage = event.get("usage") or {}
        yield tokens, (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
