"""Keys and values that come back from a lossy tier of the real engine: near, said, and never mistaken for exact."""

from pathlib import Path

import pytest

from tests.engine import damage
from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.patience import HANG_S

CHUNK = 128
RAW = 512 << 10  # bytes of a chunk
ASKED = prompts(3, 8 * CHUNK + 20, seed=91)
TOKENS = 8


def config(model: Path, folder: Path, codec: object) -> EngineConfig:
    """Make an engine with some DRAM and a tier with this codec below it."""
    cold = {
        "name": "cold",
        "kind": "file",
        "path": str(folder),
        "capacity": "1GiB",
        "codec": codec,
        "write": "through",
        "deadline": f"{HANG_S:.0f}s",
    }
    tiers = [{"kind": "dram", "capacity": 32 * RAW}, cold]
    kvtier = {"chunk_tokens": CHUNK, "load": "always", "tiers": tiers}
    return EngineConfig(
        model=model, blocks=12, kvtier=kvtier, in_process=True, options={"max_model_len": 1152}
    )


def stored(engine: Engine) -> None:
    """Compute every prompt and leave its chunks on disk only."""
    for prompt in ASKED:
        engine.answers([prompt], 1)
    engine.call("tests.engine.faults:settle")
    assert engine.reset()
    engine.call("tests.engine.faults:cool")
    engine.call("tests.engine.faults:settle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lossy")


@pytest.fixture(scope="module")
def running(engine: EngineFactory, llama: Path, folder: Path) -> Engine:
    """An engine whose chunks are int8, and on disk only."""
    made = engine(config(llama, folder, "int8"))
    stored(made)
    return made


def test_int8_serves_from_half_the_bytes_and_says_so(running: Engine, folder: Path) -> None:
    records = set(folder.glob("*/r0/??/*.kvt"))
    assert len(records) >= 24
    for path in records:
        header, payload = damage.load(path)
        assert header.codec == 3, "a pipeline"
        assert len(payload) < RAW / 3.5, "float32: 4 bytes in 1"
    (answer,) = running.answers(ASKED[:1], TOKENS)
    assert answer.cached == 8 * CHUNK
    assert "tier 'cold' is lossy" in running.log.read_text(errors="replace")


def test_the_next_engine_finds_lossy_records_by_their_own_name_only(
    running: Engine, engine: EngineFactory, llama: Path, folder: Path
) -> None:
    del running  # its records are in the folder
    before = set(folder.iterdir())
    exact = engine(config(llama, folder, "lossless"))
    (answer,) = exact.answers(ASKED[:1], TOKENS)
    assert answer.cached == 0, "int8 records are not taken for exact ones"
    exact.call("tests.engine.faults:settle")
    namespaces = set(folder.iterdir()) - before
    assert len([path for path in namespaces if path.is_dir()]) == 1
    again = engine(config(llama, folder, "int8"))
    again.call("tests.engine.faults:settle")
    (answer,) = again.answers(ASKED[1:2], TOKENS)
    assert answer.cached == 8 * CHUNK, "found after a restart"
