"""Weights that change on the disk, between two starts of an engine: nothing of the old ones is ever hit."""

import os
from pathlib import Path

import numpy as np

from tests.engine import models
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, nvme

BLOCKS = 24
PROMPT = prompts(1, 660, seed=91)[0]
SAMPLE = 64 << 10  # 16 of them, spread over the file, were once all that was looked at


def change_between_samples(file: Path) -> int:
    """Turn the sign of a quarter of the weights, where no sample lies, in place and with the old times."""
    before, size = file.stat(), file.stat().st_size
    content = np.fromfile(file, np.uint8)
    changed = 0
    for i in range(1, 15):
        start = (size - SAMPLE) * i // 15 + SAMPLE
        end = start + size // 60
        assert end < (size - SAMPLE) * (i + 1) // 15
        weights = content[start // 4 * 4 + 4 : end // 4 * 4]
        weights.view(np.float32)[:] *= -1
        changed += len(weights)
    with file.open("r+b") as out:
        out.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return changed


def test_weights_changed_on_the_disk_between_two_starts(
    engine: EngineFactory, tmp_path: Path
) -> None:
    model = models.llama(tmp_path)
    kvtier = nvme(tmp_path / "kv", write="through") | {"chunk_tokens": 128}
    config = EngineConfig(model=model, blocks=BLOCKS, kvtier=kvtier, in_process=True, fresh=True)

    def ask(config: EngineConfig) -> tuple[list[int], int]:
        running = engine(config)
        if config.kvtier:
            running.call("tests.engine.faults:settle")  # what is on the disk is listed
        (answer,) = running.answers([PROMPT], TOKENS)
        if config.kvtier:
            running.call("tests.engine.inside:idle")
        running.close()
        return answer.tokens, answer.cached

    old, cached = ask(config)
    assert cached == 0
    assert ask(config) == (old, 640), "the weights are the same"
    (weights,) = model.glob("*.safetensors")
    assert change_between_samples(weights) > 0.2 * weights.stat().st_size
    new, _ = ask(EngineConfig(model=model, blocks=BLOCKS, in_process=True))
    assert new != old
    assert ask(config) == (new, 0)
    assert ask(config) == (new, 640)
