"""The few HTTP calls that the demo makes: a streamed completion, tokenize, metrics."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import NamedTuple

from kvtier.demo.server import MODEL, ServerError

TIMEOUT_S = 120.0


class Completion(NamedTuple):
    """One answer and how long it took."""

    tokens: list[int]
    ttft_s: float  # from the request to its first token
    seconds: float
    cached: int  # prompt tokens that the engine did not compute


def complete(port: int, prompt: Sequence[int], max_tokens: int) -> Completion:
    """Stream one greedy completion of fixed length."""
    body = {
        "model": MODEL,
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
    started = time.perf_counter()
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        for event in _events(_post(connection, "/v1/completions", body)):
            tokens += event.tokens
            cached = max(cached, event.cached)
            if tokens and not first_s:
                first_s = time.perf_counter() - started
    return Completion(tokens, first_s, time.perf_counter() - started, cached)


def tokenize(port: int, text: str) -> list[int]:
    """The tokens of `text` in the server's own vocabulary."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        return list(json.loads(_post(connection, "/tokenize", body).read())["tokens"])


def metrics(port: int) -> str:
    """What `/metrics` says, in Prometheus' text format."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def _post(connection: HTTPConnection, path: str, body: dict[str, object]) -> HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ServerError(
            f"{path}: {response.status} {response.read(500).decode(errors='replace')}"
        )
    return response


class _Event(NamedTuple):
    tokens: list[int]
    cached: int


def _events(response: HTTPResponse) -> Iterator[_Event]:
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise ServerError(f"{event['error']}")
        tokens = [token for choice in event["choices"] for token in choice["token_ids"] or ()]
        usage = event.get("usage") or {}
        yield _Event(tokens, (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
