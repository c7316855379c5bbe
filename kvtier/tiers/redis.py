"""Redis or Valkey as a tier that several engines share: one value per chunk and rank.

    <prefix>:<namespace>:manifest            what the namespace is, for people
    <prefix>:<namespace>:r<rank>:<key>       a record; the key as it is, in bytes

Eviction is the server's. Records are written if absent, replaced by nobody, and removed only by who found them corrupt.
"""

import errno
import logging
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import msgspec

from kvtier.errors import ConfigError, TierError
from kvtier.tier import AskedTier, Bytes, Site
from kvtier.tiers.resp import Connection, Refused, Server, password_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEADING = b"""
for i, key in ipairs(KEYS) do
  local n = redis.pcall('STRLEN', key)
  if type(n) ~= 'number' or n < 4096 then return i - 1 end
end
return #KEYS
"""
_DISCARD = b"""
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_SLICE = 512  # keys of one question to the server, which serves nobody else meanwhile: half a millisecond
_MOST_IDLE = 16  # connections that are kept
_MOST_WORDS = 200
_FULL = ("OOM ", "MISCONF ")


class RedisConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server is. The password is in an environment variable, never in the file."""

    url: str  # redis://host:6379/0, rediss:// with TLS, unix:///path of a socket
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")] = "kvtier"
    user: str = ""
    password_env: str = ""
    ca_file: str = ""  # of the server's certificate; empty: the system's
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0  # of one call


class RedisTier(AskedTier):
    """Store records as values. Any thread; each call has a connection of its own, and an end."""

    Config = RedisConfig
    persistent = True

    def __init__(self, config: RedisConfig, site: Site) -> None:
        self._site = site
        self._config = config
        self._server = _server(config, f"tier {site.name!r}")
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._names: bytes | None = None  # how the names of records begin
        self._said = False

    @classmethod
    def refuse(cls, options: Mapping[str, object], where: str, *, here: bool) -> None:
        _server(msgspec.convert(options, RedisConfig), where, here=here)

    def open(self, namespace: str, manifest: str) -> None:
        root = f"{self._config.prefix}:{namespace}:"
        self._call(
            "open", lambda made: made.call(b"SET", f"{root}manifest".encode(), manifest.encode())
        )
        self._names = f"{root}r{self._site.rank}:".encode()
        self._look_at_eviction()

    def leading(self, keys: Sequence[bytes]) -> int:
        found = 0
        for i in range(0, len(keys), _SLICE):
            names = [self._name("ask", key) for key in keys[i : i + _SLICE]]
            n = self._number("ask", b"EVAL", _LEADING, b"%d" % len(names), *names)
            found += min(max(n, 0), len(names))
            if n != len(names):
                break
        return found

    def has(self, key: bytes) -> bool:
        return self.leading((key,)) == 1

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        name = self._name("read", key)
        return self._call("read", lambda made: made.get(name, bufs))

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        name = self._name("write", key)
        self._call("write", lambda made: made.set(name, bufs))
        return sum(map(len, bufs))

    def remove(self, key: bytes) -> bool:
        return self._number("remove", b"DEL", self._name("remove", key)) > 0

    def discard(self, key: bytes, head: bytes) -> bool:
        name = self._name("discard", key)
        return self._number("discard", b"EVAL", _DISCARD, b"1", name, head) > 0

    def close(self) -> None:
        self._names = None
        with self._lock:
            idle, self._idle = self._idle, []
        for made in idle:
            made.close()

    def _name(self, operation: str, key: bytes) -> bytes:
        if self._names is None:
            raise TierError(self._site.name, operation, "no namespace is open")
        return self._names + key

    def _number(self, operation: str, *words: bytes) -> int:
        reply = self._call(operation, lambda made: made.call(*words))
        if not isinstance(reply, int):
            raise TierError(self._site.name, operation, "the server did not answer with a number")
        return reply

    def _call(self, operation: str, ask: Callable[[Connection], T]) -> T:
        """Ask on a connection that is idle, or on a new one; one that the server has closed since is replaced, once."""
        try:
            made, fresh = self._take()
            try:
                return self._asked(made, ask)
            except ConnectionError:
                if fresh:
                    raise
            return self._asked(Connection(self._server, self._config.timeout_s), ask)
        except Refused as exc:
            said = self._without_secrets(str(exc))
            full = OSError(errno.ENOSPC, said) if said.startswith(_FULL) else None
            raise TierError(self._site.name, operation, said) from full
        except (OSError, ValueError) as exc:
            why = "the server did not answer in time" if isinstance(exc, TimeoutError) else str(exc)
            raise TierError(self._site.name, operation, why) from exc

    def _asked(self, made: Connection, ask: Callable[[Connection], T]) -> T:
        try:
            answer = ask(made)
        except Refused:
            self._give_back(made)
            raise
        except BaseException:
            made.close()
            raise
        self._give_back(made)
        return answer

    def _take(self) -> tuple[Connection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
        return Connection(self._server, self._config.timeout_s), True

    def _give_back(self, made: Connection) -> None:
        with self._lock:
            if made.open and self._names is not None and len(self._idle) < _MOST_IDLE:
                self._idle.append(made)
                return
        made.close()

    def _without_secrets(self, said: str) -> str:
        """Cut a server's own words short; it may repeat what it was told."""
        secret = self._server.password
        hidden = said.replace(secret, "***") if secret else said
        return repr(hidden[:_MOST_WORDS])[1:-1]

    def _look_at_eviction(self) -> None:
        """Warn, once, of a server that evicts nothing: when it is full, nothing more is written."""
        if self._said:
            return
        self._said = True
        with suppress(TierError):  # a server may keep its settings to itself
            policy = self._call("open", lambda made: made.settings(b"maxmemory-policy"))
            if policy == b"noeviction":
                said = "tier %r: the server evicts nothing (maxmemory-policy noeviction): once it is full, nothing more is shared"
                logger.warning(said, self._site.name)


def _server(config: RedisConfig, where: str, *, here: bool = True) -> Server:
    """Read the URL and the password.

    Raises:
        ConfigError: they cannot be right.
    """
    try:
        url = urlsplit(config.url)
        port, database = url.port or 6379, int(url.path.strip("/") or 0) if url.netloc else 0
    except ValueError:
        raise ConfigError(f"{where}: url: not of the form redis://host:port/database") from None
    if "@" in url.netloc:
        raise ConfigError(
            f"{where}: url: no user and no password in it; write user, and name a variable: password_env"
        )
    if url.query or url.fragment:
        raise ConfigError(f"{where}: url: nothing is read behind '?' or '#'")
    password = password_of(config.password_env) if here else ""
    if password is None:
        raise ConfigError(f"{where}: password_env: {config.password_env} is not set")
    if url.scheme == "unix":
        return Server(url.path, 0, config.user, password)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise ConfigError(
            f"{where}: url: {config.url!r} is not redis://host:port or rediss://host:port"
        )
    try:
        tls = ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    user = config.user
    return Server(
        url.hostname, port, user, password, database, tls if url.scheme == "rediss" else None
    )
