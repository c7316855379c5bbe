"""Make tiers, wrappers and codecs from the worker's configuration."""

import threading
from typing import cast

import msgspec

from kvtier import registry
from kvtier.codec import Codec, Shelf
from kvtier.errors import ConfigError, CorruptBlock
from kvtier.tier import Site, Tier

CODEC_NAMES = {
    0: "raw",
    1: "lz4",
    2: "zstd",
    3: "pipeline",
    4: "planes",
    5: "layout",
    6: "budget",
    7: "zstd_dict",
    16: "quantise",
}
"""Ids that any kvtier can decode, whatever its tier is configured to write; see kvtier.codecs."""


class PluginSetup(msgspec.Struct, frozen=True):
    """A plugin and its options, as the configuration names it."""

    kind: str
    options: dict[str, object] = {}


class TierSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What an I/O process needs of a TierConfig; the rest is the brain's and ignored."""

    name: str
    kind: str
    options: dict[str, object] = {}
    codec: PluginSetup = PluginSetup("raw")
    wrappers: tuple[PluginSetup, ...] = ()
    capacity: int = 0  # bytes of this rank's share
    numa: tuple[int, ...] | None = None
    depth: int | None = None


def make_tier(setup: TierSetup, site: Site) -> Tier:
    """Construct a tier, and its wrappers around it, the first innermost."""
    tier = cast(Tier, _make("tier", setup.kind, setup.options, site))
    for wrapper in setup.wrappers:
        tier = cast(Tier, _make_around(wrapper, tier))
    return tier


def in_memory(kind: str) -> bool:
    """Whether the records of this kind of tier take this machine's memory."""
    return bool(getattr(registry.lookup("tier", kind), "takes_numa", False))


def make_codec(setup: PluginSetup) -> Codec:
    """Construct a codec."""
    return cast(Codec, _make("codec", setup.kind, setup.options))


class Decoders:
    """Find the codec that a record was written with. Any thread."""

    def __init__(self, *configured: Codec) -> None:
        self._by_id = {codec.id: codec for codec in configured}
        self._shelf: Shelf | None = None
        self._lock = threading.Lock()

    def keep(self, shelf: Shelf) -> None:
        """Give every codec its shelf, now or when it is made."""
        with self._lock:
            self._shelf = shelf
            codecs = list(self._by_id.values())
        for codec in codecs:
            codec.keep(shelf)

    def of(self, codec_id: int) -> Codec:
        """Return the codec with this id.

        Raises:
            CorruptBlock: nothing here can decode it.
        """
        if codec_id not in self._by_id:
            try:
                codec = make_codec(PluginSetup(CODEC_NAMES[codec_id]))
            except (KeyError, ConfigError) as exc:
                raise CorruptBlock(f"unknown codec {codec_id}") from exc
            self._add(codec_id, codec)
        return self._by_id[codec_id]

    def _add(self, codec_id: int, codec: Codec) -> None:
        """Let others find a codec once it has the shelf of now, which may change while it is given."""
        while True:
            shelf = self._shelf
            if shelf:
                codec.keep(shelf)
            with self._lock:
                if shelf is self._shelf:
                    self._by_id.setdefault(codec_id, codec)
                    return


def _make(kind: str, name: str, options: dict[str, object], *sites: Site) -> object:
    plugin = registry.lookup(kind, name)
    config = getattr(plugin, "Config", None)
    if config is None:
        return plugin(*sites)
    return plugin(_convert(f"{kind} {name!r}", options, config), *sites)


def _make_around(setup: PluginSetup, inner: Tier) -> object:
    plugin = registry.lookup("wrapper", setup.kind)
    config = getattr(plugin, "Config", None)
    if config is None:
        return plugin(inner)
    return plugin(inner, _convert(f"wrapper {setup.kind!r}", setup.options, config))


def _convert(what: str, options: dict[str, object], config: type) -> object:
    try:
        return msgspec.convert(options, config)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{what}: {exc}") from exc
