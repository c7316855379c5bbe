"""`kvtier top` and `kvtier status` on metrics that a server might show; a real server is in tests/engine."""

import io
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from kvtier.errors import KvtierError
from kvtier.top.facts import facts, spread
from kvtier.top.scrape import fetch, metrics_url, read
from kvtier.top.screen import screen, words
from tests.patience import HANG_S

Serve = Callable[[str], str]


def page(scale: int = 1, *, off: int = 0, resting: int = 0, eio: int = 0, engine: str = "0") -> str:
    """Write what a server with traffic shows."""
    at = f'engine="{engine}",model_name="m"'
    lines = [f"kvtier:off{{{at}}} {off}.0", f"vllm:prompt_tokens_total{{{at}}} 7"]
    for tier, tokens in {"hbm": 200, "dram": 300, "nvme": 100, "computed": 400}.items():
        lines.append(f'kvtier:prompt_tokens_total{{{at},tier="{tier}"}} {tokens * scale}.0')
    for tier, used in {"dram": 1 << 30, "nvme": 3 << 30}.items():
        named = f'{at},tier="{tier}"'
        lines += [
            f"kvtier:tier_capacity_bytes{{{named}}} {4 << 30}",
            f"kvtier:tier_used_bytes{{{named}}} {used}",
            f"kvtier:tier_read_bytes_total{{{named}}} {(1 << 20) * scale}",
            f"kvtier:tier_medium_bytes_per_second{{{named}}} {2 << 30}",
            f"kvtier:tier_resting{{{named}}} {resting if tier == 'nvme' else 0}",
            f'kvtier:tier_failures_total{{cause="error",{named}}} {eio if tier == "nvme" else 0}',
            f"kvtier:saved_prefill_seconds_total{{{named}}} {10 * scale}",
            f"kvtier:tier_spent_seconds_total{{{named}}} {scale}",
        ]
    for edge, count in {"0.1": 0, "0.5": 10, "1.0": 20, "+Inf": 20}.items():
        lines.append(
            f'kvtier:ttft_seconds_bucket{{{at},le="{edge}",source="nvme"}} {count * scale}'
        )
    lines.append(f'kvtier:misses_total{{{at},reason="absent"}} {300 * scale}')
    lines.append(f'kvtier:misses_total{{{at},reason="too_dear"}} {100 * scale}')
    lines.append(f'kvtier:misses_total{{{at},reason="late"}} 0')
    return "\n".join(lines) + "\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a text at /metrics, on loopback."""
    servers = []

    def serve(text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvtier.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def drawn(text: str, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen("host:8000", facts(read(text)), width))
    return console.export_text().splitlines()


def test_shares_are_of_all_prompt_tokens() -> None:
    found = facts(read(page()))
    assert found.tokens == {"hbm": 200, "dram": 300, "nvme": 100, "computed": 400}
    assert found.reused == pytest.approx(0.6)
    assert (found.saved_s, found.spent_s) == (20, 2)
    assert found.misses == {"absent": 300, "too_dear": 100}


def test_engines_of_one_server_are_added() -> None:
    found = facts(read(page() + page(engine="1")))
    assert found.engines == 2
    assert found.tokens["computed"] == 800
    assert found.tiers[0].capacity == 8 << 30


def test_a_window_has_what_came_in_it_and_rates_its_seconds() -> None:
    before, now = read(page(1)), read(page(3))
    now = now._replace(at=before.at + 4)
    found = facts(now, before)
    assert found.tokens["computed"] == 800
    assert found.tiers[0].read_rate == (2 << 20) / 4
    assert found.tiers[0].used == 1 << 30, "a gauge is of now"
    assert found.ttft["nvme"].count == 40


def test_a_server_that_was_started_again_counts_from_zero() -> None:
    before, now = read(page(3)), read(page(1))
    assert facts(now, before).tokens["computed"] == 400


def test_quantiles_are_those_of_prometheus() -> None:
    each = spread(read(page()), "ttft_seconds", source="nvme")
    assert each.p50_s == pytest.approx(0.5)
    assert each.p95_s == pytest.approx(0.95)
    assert math.isnan(spread(read(page()), "ttft_seconds", source="dram").p50_s)


def test_what_is_wrong_is_said() -> None:
    assert facts(read(page())).wrong == []
    assert facts(read(page(eio=5))).wrong == ["nvme: 5 error"]
    assert facts(read(page(eio=5, resting=1, off=1))).wrong == [
        "kvtier is off: the engine's log says why",
        "nvme rests after failures",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width: int) -> None:
    lines = drawn(page(1000, eio=5, resting=1), width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    assert any("60% not computed" in line for line in lines)
    assert any(line.startswith("nvme") and line.rstrip().endswith("5, rests") for line in lines)


def test_before_the_first_prompt_nothing_is_divided_by_nothing() -> None:
    text = "\n".join(line for line in page(0).splitlines() if "bucket" not in line) + "\n"
    assert "no prompt tokens yet" in "\n".join(drawn(text))
    assert "kvtier is on" in words("host", facts(read(text)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no vLLM server answers there"),
        ("<html>", "no vLLM server answers there"),
        ("# HELP\nvllm:x 1\n", "this is a vLLM server without it"),
        ("kvtier:off{ 1\n", "not Prometheus' text format"),
    ],
)
def test_what_is_not_ours_is_said_in_words(text: str, said: str) -> None:
    with pytest.raises(KvtierError, match=said):
        read(text)


def test_addresses() -> None:
    assert metrics_url("localhost") == "http://localhost:8000/metrics"
    assert metrics_url("host:80/prefix/metrics") == "http://host:80/prefix/metrics"
    assert metrics_url("localhost:8000") == "http://localhost:8000/metrics"
    assert metrics_url("https://host/") == "https://host/metrics"
    assert metrics_url("http://host/prefix/metrics") == "http://host/prefix/metrics"


def test_nobody_answers() -> None:
    with pytest.raises(KvtierError, match=r"http://127\.0\.0\.1:9/metrics: "):
        fetch("127.0.0.1:9")


def test_status_tells_the_health_by_its_exit_code(serve: Serve) -> None:
    well = run("status", serve(page()))
    assert (well.returncode, well.stderr) == (0, "")
    assert "1k prompt tokens: 20% hbm, 30% dram, 10% nvme, 40% computed" in well.stdout
    ill = run("status", serve(page(resting=1)))
    assert ill.returncode == 1
    assert "look at this: nvme rests after failures" in ill.stdout
    gone = run("status", "127.0.0.1:9")
    assert (gone.returncode, gone.stdout) == (2, "")


def test_top_once_and_as_json(serve: Serve) -> None:
    url = serve(page())
    shown = run("top", url, "--interval", "0.2")  # no terminal: once
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "60% not computed" in shown.stdout
    told = run("top", url, "127.0.0.1:9", "--json", "--interval", "0.2")
    assert told.returncode == 1, "one server did not answer"
    (line,) = told.stdout.splitlines()
    assert json.loads(line)["tokens"]["dram"] == 300


def test_scrapes_that_are_kept_share_their_labels() -> None:
    one, other = (read(page(scale)).values["prompt_tokens_total"] for scale in (1, 2))
    assert [id(labels) for labels in one] == [id(labels) for labels in other]
