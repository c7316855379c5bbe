"""Options of every command: values of any kind end in output, or in a refusal in words."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.errors import KvtierError
from tests.fuzz.scale import examples
from tests.trace.test_formats import OWN

MODEL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
VALUES = st.sampled_from(
    [
        *("", " ", "0", "1", "-1", "nan", "inf", "-inf", "1e999", "9" * 400, "0x10", "1_0", "٣"),
        *("1M", "2M,1M", ",", "lru", "lru,arc", "LRU", "auto", "kvtier", "8GiB", "8GB", "1e3", "50%"),
        *("x" * 3000, "a\nb", "\x1b[31m", "[bold]", "{trace}", "{model}", "{yaml}", "{dir}", "{none}"),
        *("/dev/null", "/dev/full", "/dev/zero", "/", "/proc/self/mem", "--help", "--", "[planes,"),
    ]
)  # fmt: skip
COMMANDS = {
    "config check": ["{yaml}"],
    "config suggest": ["--model", "{model}"],
    "check": ["{dir}"],
    "plan": ["--model", "{model}", "--gpu-memory", "80GiB"],
    "replay": ["--trace", "{trace}", "--jobs", "1", "--capacity-tokens", "1k"],
    "trace stats": ["{trace}", "--capacity-tokens", "1k"],
    "trace synth": ["--requests", "3", "-o", "{out}"],
    "bench codec": ["--chunk-tokens", "16", "--codec", "raw", "--kv", "{kv}"],
    "bench tiers": ["--config", "{none}"],
}
_COSTLY = {"--requests", "--jobs", "--model"}  # a great number is not wrong, it takes its time


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the options name."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "trace.jsonl").write_text(OWN)
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "kvtier.yaml").write_text("tiers: [{kind: dram, capacity: 64MiB}]\n")
    (folder / "dir").mkdir()
    kv = Path(__file__).parents[1] / "codecs" / "kv-bf16.npy"
    return {
        "trace": f"{folder}/trace.jsonl",
        "model": f"{folder}/config.json",
        "yaml": f"{folder}/kvtier.yaml",
        "dir": f"{folder}/dir",
        "none": f"{folder}/none",
        "out": f"{folder}/out.jsonl",
        "kv": str(kv),
    }


def options_of(name: str) -> list[str]:
    """The options of a command, by their long names."""
    command = get_command(build())
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined] # a group
    return [
        option
        for each in command.params
        for option in each.opts
        if option.startswith("--") and option not in _COSTLY | {"--help", "--output", "--html"}
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_any_value(name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(files["dir"]).parent)
    known = options_of(name)
    given_options = (
        st.lists(st.tuples(st.sampled_from(known), VALUES), max_size=3) if known else st.just([])
    )

    @given(given_options, st.booleans(), VALUES)
    @example([], True, "")
    @example([("--seed", "-1")] if "--seed" in known else [], False, "")
    @examples(30)
    def check(options: list[tuple[str, str]], instead: bool, value: str) -> None:
        words = COMMANDS[name].copy()
        if instead:
            words[-1] = value
        words += [word for option in options for word in option]
        filled = [word.format(**files) if word.startswith("{") else word for word in words]
        filled = ["./" + word if word == "" else word for word in filled]
        result = CliRunner().invoke(build(), [*name.split(), *filled])
        assert result.exception is None or isinstance(
            result.exception, KvtierError | OSError | SystemExit
        ), (filled, result.exc_info)
        assert "Traceback" not in result.output

    check()
