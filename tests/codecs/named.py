"""Codecs as a YAML names them."""

import msgspec

from kvtier.codec import Codec
from kvtier.config import Plugin
from kvtier.config.codecs import codec
from kvtier.registry import build


def named(*raw: object) -> Codec:
    """Construct a codec from its short name, or from several stages."""
    given = raw[0] if len(raw) == 1 else list(raw)
    return build("codec", msgspec.convert(codec(given, "codec"), Plugin))
