"""Every mistake in a configuration, and the exact words that answer it."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvtier.config import load, parse
from kvtier.errors import ConfigError

DRAM = {"name": "dram", "kind": "dram", "capacity": "1GiB"}


def message(source: Mapping[str, object] | str | Path | None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return str(caught.value)


def tiers(*lower: Mapping[str, object], **dram: object) -> dict[str, object]:
    return {"tiers": [{**DRAM, **dram}, *lower]}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"tires": [DRAM]}, "tires: unknown key (did you mean 'tiers'?)"),
        ({"colour": 1}, "colour: unknown key"),
        ({"chunk_tokens": "big"}, "chunk_tokens: expected an integer, got a string"),
        ({"chunk_tokens": 0}, "chunk_tokens: expected an integer >= 1"),
        ({"store": "promt"}, "store: 'promt' is not one of all, prompt (did you mean 'prompt'?)"),
        ({"weights_id": 7}, "weights_id: expected a string, got an integer"),
        ({"persist_lora": "yes"}, "persist_lora: expected true or false, got a string"),
        ({"prefetch": "arrival"}, "prefetch: expected a list, got a string"),
        (
            {"prefetch": ["arival"]},
            "prefetch[0]: unknown prefetch 'arival' (did you mean 'arrival'?); known: arrival, reuse_distance, sliding_window",
        ),
        ({"tiers": 3}, "tiers: expected a list, got an integer"),
        (
            tiers(eviction={"kind": "attention", "weight": float("nan")}),
            "tiers[0].eviction.weight: expected a finite number, got nan",
        ),
        (
            {"prefetch": [{"kind": "reuse_distance", "late": float("inf")}]},
            "prefetch[0].late: expected a finite number, got inf",
        ),
        (
            tiers(eviction={"kind": "arc", "ghosts": 1e308}),
            "tiers[0].eviction.ghosts: expected a number <= 1000.0",
        ),
        (
            tiers(eviction={"kind": "s3fifo", "small": 0}),
            "tiers[0].eviction.small: expected a number > 0.0",
        ),
        ({"tiers": []}, "tiers: there is none; the first is always {name: dram, kind: dram}"),
        ({"tiers": ["dram"]}, "tiers[0]: expected a mapping, got a string"),
        (
            {"max_wait": "long"},
            "max_wait: 'long' is not a duration; write for example 2s or 500ms",
        ),
        ({"max_wait_s": 3}, "max_wait_s: unknown key (did you mean 'max_wait'?)"),
        ({"io": [1]}, "io: expected a mapping, got a list"),
        ({"io": {"thread": 4}}, "io.thread: unknown key (did you mean 'threads'?)"),
        ({"io": {"threads": 1}}, "io.threads: expected an integer >= 2"),
        ({"io": {"queue": 64}}, "io.queue: expected an integer >= 4096"),
        (
            {"io": {"idle_write": "fast"}},
            (
                "io.idle_write: 'fast' is not a size; "
                "write for example 64GiB, 512MiB or a number of bytes"
            ),
        ),
    ],
)
def test_a_mistake_at_the_top(raw: Mapping[str, object], expected: str) -> None:
    assert message(raw) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"capcity": "1GiB"}, "tiers[0].capcity: unknown key (did you mean 'capacity'?)"),
        (
            {"capacity": "64GB"},
            "tiers[0].capacity: '64GB' is not a size (did you mean '64GiB'?)",
        ),
        (
            {"capacity": "plenty"},
            (
                "tiers[0].capacity: 'plenty' is not a size; "
                "write for example 64GiB, 512MiB or a number of bytes"
            ),
        ),
        (
            {"capacity": 64},
            "tiers[0].capacity: 64 bytes hold no chunk (did you mean '64GiB'?)",
        ),
        ({"capacity": 0}, "tiers[0].capacity: 0 holds nothing; remove the tier instead"),
        ({"numa": [1023]}, "tiers[0].numa: there is no NUMA node 1023; here are: "),
        ({"numa": "near"}, "tiers[0].numa: expected a list, got a string"),
        ({"name": "my tier"}, "tiers[0].name: expected a string matching regex"),
        ({"name": "dram\n"}, "tiers[0].name: expected a string matching regex"),
        (
            {"eviction": "lur"},
            "tiers[0].eviction: unknown eviction 'lur' (did you mean 'lru'?); known: arc, ",
        ),
        (
            {"eviction": {"kind": "lru", "ghosts": 2}},
            "tiers[0].eviction.ghosts: unknown key",
        ),
        ({"eviction": {"ghosts": 2}}, "tiers[0].eviction.kind: missing"),
        (
            {"eviction": ["lru"]},
            "tiers[0].eviction: expected the name of a plugin or a mapping, got a list",
        ),
        (
            {"eviction": "no.such.module:Thing"},
            "tiers[0].eviction: eviction 'no.such.module:Thing': there is no module 'no'",
        ),
        (
            {"eviction": "collections:OrderedDict"},
            "tiers[0].eviction: eviction 'collections:OrderedDict' is not a subclass of EvictionPolicy",
        ),
        ({"kind": "file"}, "tiers[0].kind: the first tier is always 'dram', got 'file'"),
        ({"kind": None}, "tiers[0].kind: missing"),
        (
            {"codec": "zstd"},
            "tiers[0].codec: not for dram: its slots hold raw bytes; put it on a lower tier",
        ),
        (
            {"write": "idle"},
            (
                "tiers[0].write: not for dram: it says when chunks go down into a tier; "
                "put it on a lower tier"
            ),
        ),
    ],
)
def test_a_mistake_in_the_dram_tier(change: Mapping[str, object], expected: str) -> None:
    assert message(tiers(**change)).startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"capcity": "1GiB"}, "tiers[1].capcity: unknown key (did you mean 'capacity'?)"),
        ({"pth": "/tmp/x"}, "tiers[1].pth: unknown key (did you mean 'path'?)"),
        (
            {"capacity": None},
            "tiers[1].capacity: missing; a lower tier needs one, for example 100GiB",
        ),
        ({"name": "dram"}, "tiers[1].name: 'dram' is the name of tiers[0] already"),
        ({"name": "computed"}, "tiers[1].name: 'computed' means something else in the metrics"),
        ({"kind": "dram"}, "tiers[1].kind: only the first tier is 'dram'"),
        (
            {"kind": "fil"},
            "tiers[1].kind: unknown tier 'fil' (did you mean 'file'?); known: file, memory, redis, valkey",
        ),
        ({"numa": 0}, "tiers[1].numa: 'file' keeps nothing in memory that could be bound"),
        (
            {"write": "idel"},
            (
                "tiers[1].write: 'idel' is not one of on_evict, on_reuse, through, idle "
                "(did you mean 'idle'?)"
            ),
        ),
        (
            {"deadline": "soon"},
            "tiers[1].deadline: 'soon' is not a duration; write for example 2s or 500ms",
        ),
        ({"deadline": 0}, "tiers[1].deadline: 0 is not a duration; write for example 2s or 500ms"),
        ({"depth": 1}, "tiers[1].depth: expected an integer >= 2"),
        ({"depth": 9}, "tiers[1].depth: 9 are more than io.threads, 8"),
        (
            {"path": "cache"},
            "tiers[1].path: 'cache' is not absolute: the engine's processes may start elsewhere",
        ),
        (
            {"path": "/no/such/place"},
            "tiers[1].path: there is no directory '/no/such' to make '/no/such/place' in",
        ),
        ({"path": 3}, "tiers[1].path: expected a string, got an integer"),
        ({"path": "/proc/version"}, "tiers[1].path: '/proc/version' is not a directory"),
        ({"path": "/tmp/\0"}, "tiers[1].path: '/tmp/\\x00' has a NUL in it, which no path can"),
        (
            {"path": "//"},
            "tiers[1].path: '//' is the root of all; give a directory of its own in it",
        ),
        (
            {"capacity": "9999999999TiB"},
            "tiers[1].capacity: 1.09951e+22 is more than anything can hold",
        ),
        ({"medium": {"read": 0}}, "tiers[1].medium.read: expected a number > 0.0"),
        (
            {"wrappers": ["solw"]},
            "tiers[1].wrappers[0]: unknown wrapper 'solw' (did you mean 'slow'?); known: faulty, slow",
        ),
        ({"wrappers": "slow"}, "tiers[1].wrappers: expected a list, got a string"),
    ],
)
def test_a_mistake_in_a_lower_tier(
    change: Mapping[str, object], expected: str, tmp_path: Path
) -> None:
    lower = {"name": "nvme", "kind": "file", "path": str(tmp_path), "capacity": "1GiB", **change}
    assert message(tiers(lower)) == expected


@pytest.mark.parametrize("place", ["kv", "kv/", "./kv", "kv/../kv", "link"])
def test_two_file_tiers_in_one_directory(place: str, tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kv")
    lower = [
        {"name": name, "kind": "file", "path": f"{tmp_path}/{path}", "capacity": "1GiB"}
        for name, path in (("a", "kv"), ("b", "kv2"), ("c", place))
    ]
    said = message({"tiers": [{"kind": "dram"}, *lower]})
    assert said == f"tiers[3].path: '{tmp_path}/{place}' is the directory of tiers[1] already"


def test_a_file_tier_on_a_disk_that_is_mounted_below_another_s(tmp_path: Path) -> None:
    lower = [
        {"name": name, "kind": "file", "path": f"{tmp_path}{path}", "capacity": "1GiB"}
        for name, path in (("a", ""), ("b", "/disk2"))
    ]
    assert len(load({"tiers": [{"kind": "dram"}, *lower]}).tiers) == 3


@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/.."])
def test_the_root_of_all(path: str) -> None:
    lower = {"kind": "file", "path": path, "capacity": "1GiB"}
    assert "is the root of all" in message(tiers(lower))


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "kv").symlink_to(tmp_path / "nothing")
    lower = {"kind": "file", "path": f"{tmp_path}/kv", "capacity": "1GiB"}
    assert message(tiers(lower)) == f"tiers[1].path: '{tmp_path}/kv' is a link to nothing"


def test_a_lower_tier_without_its_own_required_option() -> None:
    assert message(tiers({"kind": "file", "capacity": "1GiB"})) == "tiers[1].path: missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty; it needs at least 'tiers:'"),
        ("# nothing\n", "the file is empty; it needs at least 'tiers:'"),
        ("- a\n", "expected a mapping, got a list"),
        ("store: all\ntiers: [\n", "line 3: not valid YAML: expected the node content"),
        ("store: all\nstore: prompt\n", "line 2: not valid YAML: the key 'store' is there twice"),
        ("store: \x01\n", "line 1: not valid YAML: the character '\\x01' is not allowed"),
        ("[" * 9999, "not valid YAML for kvtier: nested too deeply"),
        ("1: 2\n", "1: unknown key"),
        ("tiers: [{kind: dram, capcity: 1}]", "tiers[0].capcity: unknown key"),
    ],
)
def test_a_mistake_in_a_file_starts_with_its_name(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(text)
    assert message(file).startswith(f"{file}: {expected}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert (
        message(tmp_path / "no.yaml")
        == f"{tmp_path}/no.yaml: cannot be read: No such file or directory"
    )


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "kvtier.yaml").write_bytes(b"\xff\xfe\x00")
    assert message(tmp_path / "kvtier.yaml").endswith("cannot be read: it is not text")


def test_a_source_of_the_wrong_type() -> None:
    assert message(3) == "expected the path of a YAML file or a mapping, got an integer"  # type: ignore[arg-type] # that is the test


def test_a_disk_that_does_not_answer_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier stays closed until the disk is well; the configuration is right."""
    real = os.stat

    def stale(path: str, *args: object, **more: object) -> os.stat_result:
        if str(path).startswith("/mnt/stale"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *args, **more)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(os, "stat", stale)
    monkeypatch.setattr(parse, "stat", stale)
    lower = {"kind": "file", "path": "/mnt/stale/kv", "capacity": "1GiB"}
    assert load(tiers(lower)).tiers[1].options["path"] == "/mnt/stale/kv"


MANY = """
chunk_token: 64
store: promt
io: {thread: 4, queue: 3}
tiers:
  - {name: dram, kind: dram, capcity: 1GiB, evicton: arcc}
  - {name: nvme, kind: fil, path: kv, capacity: 64G, codec: {kind: zst, level: 1}, write: idel, deadline: soon}
  - {name: nvme, kind: file, path: /tmp/a}
  - {name: x, kind: file, path: /tmp/a, capacity: 1GiB, numa: [0]}
"""
PLACES = [
    *("chunk_token", "store", "io.thread", "io.queue", "tiers[0].capcity", "tiers[0].evicton"),
    *("tiers[0].eviction", "tiers[1].kind", "tiers[1].path", "tiers[1].capacity", "tiers[1].codec"),
    *("tiers[1].write", "tiers[1].deadline", "tiers[2].capacity", "tiers[2].name", "tiers[3].path"),
    "tiers[3].numa",
]


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text(MANY)
    with pytest.raises(ConfigError) as caught:
        load(file)
    told = [each.removeprefix(f"{file}: ").split(": ")[0] for each in caught.value.mistakes]
    assert sorted(told) == sorted(PLACES)


@pytest.mark.parametrize(
    "raw",
    [
        tiers({"kind": 7, "capacity": "1GiB"}),
        tiers({"kind": "file", "capacity": "1GiB"}),
        tiers({"kind": "file", "path": 3, "capacity": "1GiB"}),
        tiers("nvme"),  # type: ignore[arg-type]
        {"tiers": {"dram": 1}},
        {"io": {"threads": []}},
        {"hooks": {"on_evict": ["nowhere:nothing", "nowhere:else"]}},
        {"tiers": [{**DRAM, "kind": "file"}]},
        [],
    ],
)
def test_a_guess_makes_no_mistakes(raw: object) -> None:
    """What was put right is wrong no more, or is not told a second time."""
    with pytest.raises(ConfigError) as caught:
        load(raw)  # type: ignore[arg-type]
    assert len(caught.value.mistakes) == 1
