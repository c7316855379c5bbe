"""vLLM's API server in a lane: `python -m tests.engine.serve` takes its arguments."""

import runpy
from dataclasses import dataclass, fields

from kvtier.demo.server import ServerConfig
from tests.engine import lanes

API_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, kw_only=True)
class LaneServerConfig(ServerConfig):
    """A server that this module starts."""

    def command(self, port: int) -> list[str]:
        """The command line."""
        own = "tests.engine.serve"
        return [own if part == API_SERVER else part for part in super().command(port)]


def in_lane(config: ServerConfig, lane: str) -> ServerConfig:
    """The same server in a lane."""
    same = {field.name: getattr(config, field.name) for field in fields(config)}
    return LaneServerConfig(**same | {"env": {**lanes.environ(lane), **config.env}})


if __name__ in ("__main__", "__mp_main__"):  # the server's process, and those that it spawns
    lanes.enter()

if __name__ == "__main__":
    runpy.run_module(API_SERVER, run_name="__main__")
