"""A live engine writes its own trace down, and the replayer reads it."""

from pathlib import Path

from kvtier.config import Plugin
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.files import TraceFile
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.scenarios import TOKENS, dram, turns


def test_a_live_engine_records_what_can_be_replayed(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "trace.jsonl"
    config = EngineConfig(
        model=llama,
        blocks=24,
        kvtier={**dram(), "trace": {"record": str(file)}, "chunk_tokens": 128},
        in_process=True,
        env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
    )
    made = engine(config)
    chats = turns(sessions=2, count=3, seed=91)
    for asked in chats:
        made.generate(asked, TOKENS)
    made.call("tests.engine.inside:close_trace")
    read = TraceFile(file).load()
    assert len(read) == 6
    assert read.block_tokens == 128
    assert read.prompt_tokens.tolist() == [len(prompt) for asked in chats for prompt in asked]
    assert set(read.output_tokens.tolist()) == {TOKENS}
    for i in range(4):  # the next turn of a chat begins with the whole of this one
        blocks, later = read.blocks(i).tolist(), read.blocks(i + 2).tolist()
        assert later[: len(blocks)] == blocks
        assert len(blocks) == read.prompt_tokens[i] // 128
    done = replay_blocks(read, one_tier(Plugin(kind="lru")), slots=100, block_nbytes=1)
    assert done.hits.tolist() == [0, 0, *(len(read.blocks(i)) for i in range(4))]
    words = file.read_text()
    assert "prompt" not in words
    assert "text" not in words
