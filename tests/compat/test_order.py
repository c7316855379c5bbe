"""In which order vLLM's model runners call the hooks of a step, read from their sources: a device is at hand nowhere here.

Copies are ordered after what the device was given when the step is announced (`bind_connector_metadata`): the zeroing
of blocks has to be among that, and the forward pass must not be.
"""

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")

STEPS = {
    "gpu_model_runner.py": [
        "handle_preemptions",
        "self._update_states(",
        "self.maybe_get_kv_connector_output(",
        "self._model_forward(",
    ],
    "gpu/model_runner.py": [
        "self.update_requests(",
        "self.kv_connector.pre_forward(",
        "run_fullgraph(",
        "self.kv_connector.pre_forward(",
        "self.model(",
    ],
}
ZEROED = {"gpu_model_runner.py": "_update_states", "gpu/model_runner.py": "update_requests"}
HOOKS = {
    "kv_connector_model_runner_mixin.py": ["bind_connector_metadata", "start_load_kv", "yield"],
    "gpu/kv_connector.py": ["handle_preemptions", "bind_connector_metadata", "_start_load_kv"],
}


@pytest.mark.parametrize("file", STEPS)
def test_a_step_is_announced_after_the_zeroing_and_before_the_pass(file: str) -> None:
    body = method(file, "execute_model")
    at = 0
    for word in STEPS[file]:
        at = body.index(word, at) + 1


@pytest.mark.parametrize("file", ZEROED)
def test_that_is_where_blocks_are_zeroed(file: str) -> None:
    assert re.search(r"zero_block_ids\(scheduler_output", method(file, ZEROED[file]))


@pytest.mark.parametrize("file", HOOKS)
def test_what_is_submitted_comes_after_the_announcement(file: str) -> None:
    name = "pre_forward" if "gpu/" in file else "_get_kv_connector_output"
    body = method(file, name)
    at = [body.index(f"{word}(" if word != "yield" else word) for word in HOOKS[file]]
    assert at == sorted(at)


def method(file: str, name: str) -> str:
    """The source of a method, up to the next; of several the longest: what is off has the same, empty."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    text = (Path(vllm.origin).parent / "v1" / "worker" / file).read_text()
    found = re.findall(rf"\n    def {name}\(.*?(?=\n    def |\n    @|\nclass |\Z)", text, re.DOTALL)
    assert found, f"{file} has no {name}"
    return str(max(found, key=len))
