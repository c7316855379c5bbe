"""The redis tier against a real server: the contract, and a bad day."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import ConfigError, TierError
from kvtier.testing.tiers import FIRST, AskedTierContract, pages
from kvtier.tier import AskedTier, Site
from kvtier.tiers.redis import RedisConfig, RedisTier
from kvtier.types import PAGE
from tests.redis_server import RedisServer, redis_server

TIMEOUT_S = 0.4


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    with redis_server(tmp_path) as made:
        yield made


def tier_of(server: RedisServer, **more: str) -> RedisTier:
    return RedisTier(RedisConfig(url=server.url, timeout_s=TIMEOUT_S, **more), Site("kv"))


def opened(server: RedisServer, **more: str) -> RedisTier:
    tier = tier_of(server, **more)
    tier.open(FIRST, "{}")
    return tier


class TestRedisTier(AskedTierContract):
    @pytest.fixture(autouse=True)
    def _store(self, well: RedisServer) -> Iterator[None]:
        self.server = well
        self.tiers: list[AskedTier] = []
        well.call(b"FLUSHALL")
        yield
        for tier in self.tiers:
            tier.close()

    def make(self, site: Site) -> AskedTier:
        self.tiers.append(RedisTier(RedisConfig(url=self.server.url), site))
        return self.tiers[-1]

    def damage(self, tier: AskedTier, key: bytes) -> None:
        name = f"kvtier:{FIRST}:r0:".encode() + key
        self.server.call(b"SETRANGE", name, b"100", b"\xff")


def calls(tier: RedisTier) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: tier.read(b"k", [pages(1)]),
        "write": lambda: tier.write(b"w", [pages(256)]),
        "leading": lambda: tier.leading([b"k"]),
        "has": lambda: tier.has(b"k"),
        "discard": lambda: tier.discard(b"k", bytes(PAGE)),
        "open": lambda: tier.open(FIRST, "{}"),
    }


def fill(tier: RedisTier) -> None:
    """Write 8 MiB."""
    for i in range(8):
        tier.write(b"%d" % i, [pages(256)])


@pytest.mark.parametrize("call", ["read", "write", "leading", "has", "discard", "open"])
@pytest.mark.parametrize("harm", ["kill", "stop"])
def test_a_server_that_is_gone_or_stopped_costs_each_call_its_time_and_no_more(
    server: RedisServer, harm: str, call: str
) -> None:
    tier = opened(server)
    tier.write(b"k", [pages(1, seed=1)])
    getattr(server, harm)()
    started = time.monotonic()
    with pytest.raises(TierError, match="kv: "):
        calls(tier)[call]()
    assert time.monotonic() - started < TIMEOUT_S + 0.5
    if harm == "stop":
        server.go_on()
        out = pages(1)
        assert tier.read(b"k", [out]) == PAGE, "an answer to another call"
        assert np.array_equal(out, pages(1, seed=1))
    else:
        server.start()
        assert not tier.has(b"k")
        tier.write(b"k", [pages(1)])
        assert tier.has(b"k")
    tier.close()


def test_a_server_that_starts_again_between_two_calls_is_not_noticed(server: RedisServer) -> None:
    tier = opened(server)
    tier.write(b"k", [pages(1)])
    server.kill()
    server.start()
    assert not tier.has(b"k")
    tier.close()


def test_a_full_server_refuses_writes_as_a_full_disk_does_and_is_read(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "4mb") as server:
        tier = opened(server)
        tier.write(b"k", [pages(1)])
        with pytest.raises(TierError, match="OOM") as failure:
            fill(tier)
        assert failure.value.full
        assert tier.read(b"k", [pages(1)]) == PAGE
        tier.close()


def test_a_password_comes_from_the_environment_and_a_wrong_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path) as server:
        server.call(b"CONFIG", b"SET", b"requirepass", b"open sesame")
        server.password = "open sesame"
        with pytest.raises(TierError, match="NOAUTH"):
            opened(server)
        with pytest.raises(ConfigError, match="password_env: KV_PASSWORD is not set"):
            tier_of(server, password_env="KV_PASSWORD")
        monkeypatch.setenv("KV_PASSWORD", "wrong")
        with pytest.raises(TierError, match="WRONGPASS"):
            opened(server, password_env="KV_PASSWORD")
        monkeypatch.setenv("KV_PASSWORD", "open sesame")
        tier = opened(server, password_env="KV_PASSWORD")
        tier.write(b"k", [pages(1)])
        assert tier.has(b"k")
        tier.close()


def test_a_server_that_evicts_nothing_is_warned_of_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    tier = opened(server)
    tier.open(FIRST, "{}")
    assert [record.message for record in caplog.records if "noeviction" in record.message] == [
        "tier 'kv': the server evicts nothing (maxmemory-policy noeviction): once it is full, nothing more is shared"
    ]
    tier.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret@host", "no user and no password in it"),
        ("redis://secret@host", "no user and no password in it"),
        ("redis://host?password=secret", "nothing is read behind"),
        ("redis://[::1", "not of the form"),
        ("http://host", "is not redis://host:port"),
        ("redis://host:port", "not of the form"),
        ("redis://host/x", "not of the form"),
        ("redis://", "is not redis://host:port"),
    ],
)
def test_a_url_that_cannot_be_right_is_refused_in_words(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        RedisTier(RedisConfig(url=url), Site("kv"))
    assert "secret" not in str(refused.value)


def test_the_servers_words_do_not_repeat_the_password(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_PASSWORD", "open sesame")
    tier = tier_of(server, password_env="KV_PASSWORD")
    assert "sesame" not in tier._without_secrets("ERR unknown 'open sesame'")
    assert len(tier._without_secrets("x" * 900)) == 200


def test_what_is_no_record_at_all_is_absent_and_written(server: RedisServer) -> None:
    tier = opened(server)
    for i, (words) in enumerate([(b"SET", b""), (b"SET", b"short"), (b"LPUSH", b"x")]):
        key = b"%d" % i
        name = f"kvtier:{FIRST}:r0:".encode() + key
        server.call(words[0], name, words[1])
        assert not tier.has(key)
        assert tier.leading([key]) == 0
        tier.write(key, [pages(1)])
        assert tier.has(key)
    tier.close()
