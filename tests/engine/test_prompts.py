"""The books of prompts agree with vLLM's own, token for token, whatever happens to the requests."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.rig import ASKED, CHUNK, COMMON, EVERY, LONG, SHARED, SLOT, Disk, Rig, config, rig
from tests.engine.scenarios import Reference, turns

ASKED_OF_LLAMA = EVERY
SHORT = prompts(3, 90, seed=74)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("prompts"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def books(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    yield from rig(engine, config(llama, disk), disk, reference)


class Grown:
    """How much the counters have grown since this was made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = self._engine.metrics()

    def __call__(self, name: str) -> float:
        """Return one, by its name with its labels."""
        return self._engine.metrics().get(name, 0) - self._before.get(name, 0)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return those of each value of a label that grew."""
        start, now = f'{name}{{{label}="', self._engine.metrics()
        grown = {
            key.removeprefix(start).removesuffix('"}'): value - self._before.get(key, 0)
            for key, value in now.items()
            if key.startswith(start)
        }
        return {each: value for each, value in grown.items() if value}

    def tokens(self) -> dict[str, float]:
        """Return kvtier's prompt tokens by tier, after a check that all books agree."""
        tokens = self.by("kvtier:prompt_tokens_total", "tier")
        assert sum(tokens.values()) == self("vllm:prompt_tokens_total")
        assert sum(self.misses().values()) == tokens.get("computed", 0)
        theirs = self.by("vllm:prompt_tokens_by_source_total", "source")
        assert tokens.get("hbm", 0) == theirs.get("local_cache_hit", 0)
        failed = self.misses().get("failed", 0)
        ours = sum(n for tier, n in tokens.items() if tier not in ("hbm", "computed"))
        assert 0 <= theirs.get("external_kv_transfer", 0) - ours <= failed
        return tokens

    def misses(self) -> dict[str, float]:
        """Return why tokens were computed."""
        return self.by("kvtier:misses_total", "reason")


def test_turns_of_chats_over_every_tier(books: Rig) -> None:
    grown = Grown(books.engine)
    for asked in turns(5, 3, seed=75):
        books.engine.generate(asked, 2)
        assert books.engine.reset()
    tokens = grown.tokens()
    assert set(tokens) >= {"dram", "nvme", "computed"}
    assert set(grown.misses()) <= {"absent", "busy", "tail"}
    assert grown.misses()["tail"] > 0
    saved = grown.by("kvtier:saved_prefill_seconds_total", "tier")
    assert set(saved) == {"dram", "nvme"}
    assert grown('kvtier:ttft_seconds_count{source="nvme"}') > 0
    total = sum(grown.by("kvtier:ttft_seconds_count", "source").values())
    assert total == grown("vllm:time_to_first_token_seconds_count") == 15


def test_a_hit_of_each_tier_is_of_that_tier(books: Rig) -> None:
    books.stored(ASKED[0])
    grown = Grown(books.engine)
    assert books.cached(ASKED[0]) == 8
    assert grown.tokens() == {"nvme": 8 * CHUNK, "computed": 20}
    assert grown.misses() == {"tail": 20}
    assert books.engine.reset()
    assert books.cached(ASKED[0]) == 8
    assert grown.tokens()["dram"] == 8 * CHUNK
    assert books.cached(ASKED[0]) == 8
    assert grown.tokens()["hbm"] == 8 * CHUNK


def test_a_hit_that_is_partly_here_and_partly_there(books: Rig) -> None:
    books.stored(COMMON)
    assert books.cached(COMMON) == 8
    grown = Grown(books.engine)
    books.ask(SHARED[0])
    assert grown.tokens() == {"hbm": 8 * CHUNK, "computed": 4 * CHUNK + 20}
    assert grown.misses() == {"absent": 4 * CHUNK, "tail": 20}


def test_preempted_aborted_and_sampled_several_times(books: Rig) -> None:
    grown = Grown(books.engine)
    books.engine.generate(prompts(3, 13 * CHUNK - 2, seed=76), 5)  # the device has 39 blocks
    assert grown("vllm:num_preemptions_total") > 0
    books.engine.generate([ASKED[12], SHORT[0]], 2, n=3, temperature=1.0)
    books.engine.generate([SHORT[1]], 1)
    for i, prompt in enumerate(ASKED[13:16]):
        books.engine.add(f"aborted {i}", prompt, 20)
        for _ in range(2 * i):
            books.engine.step()
        books.engine.abort(f"aborted {i}")
    books.settle()
    assert set(grown.tokens()) >= {"hbm", "computed"}


def test_what_is_asked_without_the_cache_is_computed_for_that(books: Rig) -> None:
    books.stored(ASKED[0])
    grown = Grown(books.engine)
    books.engine.generate([ASKED[0]], 1, prompt_logprobs=1)
    assert grown.tokens() == {"computed": 8 * CHUNK + 20}
    assert grown.misses() == {"unasked": 8 * CHUNK, "tail": 20}


def test_reads_that_fail_are_computed(books: Rig) -> None:
    books.stored(LONG)
    books.disk.fail(read_errno="EIO")
    grown = Grown(books.engine)
    assert books.cached(LONG) == 0
    assert grown.tokens() == {"computed": 16 * CHUNK + 20}
    assert grown.misses() == {"failed": 16 * CHUNK, "tail": 20}


def test_a_load_that_fails_after_its_hit_is_computed(books: Rig) -> None:
    books.stored(ASKED[0])
    assert books.cached(ASKED[0]) == 8
    assert books.engine.reset()
    grown = Grown(books.engine)
    books.engine.call("tests.engine.faults:lose", 3)
    books.ask(ASKED[0])
    assert grown.tokens() == {"dram": 3 * CHUNK, "computed": 5 * CHUNK + 20}
    assert grown.misses() == {"failed": 5 * CHUNK, "tail": 20}
    theirs = grown.by("vllm:prompt_tokens_by_source_total", "source")
    assert theirs == {"external_kv_transfer": 8 * CHUNK, "local_compute": 20}, (
        "vLLM sees no failure"
    )


def test_what_was_evicted_is_told_from_what_is_new(engine: EngineFactory, llama: Path) -> None:
    dram = {"name": "hot", "kind": "dram", "capacity": 12 * SLOT}
    small = engine(
        EngineConfig(model=llama, kvtier={"chunk_tokens": CHUNK, "tiers": [dram]}, in_process=True)
    )
    grown = Grown(small)
    small.generate(ASKED[:2], 1)  # 16 chunks
    assert small.call("tests.engine.faults:settle") == []
    assert small.reset()
    small.generate(ASKED[1:2], 1)
    assert grown.tokens()["hot"] > 0
    assert small.reset()
    assert "evicted" not in grown.misses()
    small.generate(ASKED[:1], 1)
    assert grown.misses()["evicted"] >= CHUNK
