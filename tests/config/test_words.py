"""Whatever is written in a configuration, its mistake is one line that can be read, with its place."""

from pathlib import Path

import pytest

from kvtier.config import load
from kvtier.errors import ConfigError

LAUGHS = "l0: &l0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]\n" for i in range(9)
)


def said(text: str | bytes, folder: Path) -> str:
    """What is answered to a file, without its name; always one line of at most a thousand characters."""
    file = folder / "kvtier.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(file)
    words = str(caught.value)
    assert words.isprintable()
    assert len(words) < 1100
    return words.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "store: all\nweights_id: 2024-30-01\n",
            (
                "line 2: not valid YAML: '2024-30-01' is no timestamp (month must be in 1..12); "
                "put a text in quotes"
            ),
        ),
        ("weights_id: !!int x\n", "line 1: not valid YAML: 'x' is no int ("),
        ("weights_id: !!int ''\n", "line 1: not valid YAML: '' is no int ("),
        ("weights_id: !!bool x\n", "line 1: not valid YAML: 'x' is no bool ("),
        ("weights_id: !!timestamp x\n", "line 1: not valid YAML: 'x' is no timestamp ("),
        ("weights_id: !!float x\n", "line 1: not valid YAML: 'x' is no float ("),
        ("a: \n b: " + "7" * 5000, "line 2: not valid YAML: '7777"),
        ("store: all\nweights_id: a\0b\n", "line 2: not valid YAML: the character '\\x00' is"),
        ('weights_id: "a\\ud800"\n', "weights_id: there is a character in it that no text can"),
        ('"a\\nb\\x1b[31m": 1\n', "a\\nb\\x1b[31m: unknown key"),
        ("store: " + "x" * 100_000, "store: 'xxx"),
        ("? " + "x" * 100_000 + "\n: 1", "xxx"),
        ("a: &a {b: *a}\n", "a.b.b.b."),
        (LAUGHS + "store: *l9\n", "l4: more than 10,000 values when it is written out"),
        ("#" * (1 << 20) + "\na: 1\n", "cannot be read: more than 1,048,576 bytes are no"),
        ("trace: {record: /tmp/a\0}", "line 1: not valid YAML: the character '\\x00'"),
        ('trace: {record: "/tmp/a\\0"}', "trace.record: '/tmp/a\\x00' has a NUL in it"),
        (
            'tiers: [{kind: dram}, {kind: file, path: "/a\\0", capacity: 1B}]',
            "tiers[1].path: '/a\\x00' has a NUL in it",
        ),
        ('hooks: {on_hit: ["a\\0:b"]}', "hooks.on_hit[0]: hook 'a\\x00:b': "),
        ('hooks: {on_hit: [".a:b"]}', "hooks.on_hit[0]: hook '.a:b': .a cannot be imported: Type"),
        ('hooks: {on_hit: ["tests.config.broken:b"]}', "hooks.on_hit[0]: hook 'tests.config.br"),
    ],
)
def test_one_line_with_its_place(text: str, expected: str, tmp_path: Path) -> None:
    assert said(text, tmp_path).startswith(expected)


def test_the_end_of_a_long_message_is_kept(tmp_path: Path) -> None:
    words = said("tiers: [{kind: dram, capacity: " + "9" * 4000 + "XB}]", tmp_path)
    assert words.endswith("write for example 64GiB, 512MiB or a number of bytes")


def test_a_name_of_a_file_that_no_path_can_be() -> None:
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load("a\0b")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="are no configuration"):
        load("/dev/zero")


def test_a_mapping_that_is_nested_without_end() -> None:
    raw: object = 1
    for _ in range(5000):
        raw = {"a": raw}
    with pytest.raises(ConfigError, match="nested too deeply"):
        load(raw)  # type: ignore[arg-type] # a mapping


@pytest.mark.parametrize("name", ["int8", "int4", "fp8", "lossless"])
def test_a_short_name_is_no_stage(name: str, tmp_path: Path) -> None:
    words = said(
        f"tiers: [{{kind: dram}}, {{kind: file, path: {tmp_path}, codec: [{name}, zstd]}}]",
        tmp_path,
    )
    first = "planes" if name == "lossless" else "quantise"
    assert words == (
        f"tiers[1].codec[0]: {name!r} is short for the whole list [{first}, zstd], and no stage; write it "
        f"alone, or {first!r} here"
    )
