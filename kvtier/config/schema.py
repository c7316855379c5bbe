"""The JSON Schema of the YAML, by which an editor completes its keys and underlines mistakes.

It comes from the structs and the plugins themselves. What only the parser knows, such as that a directory is
there, it does not say: it allows whatever the parser may allow.
"""

from typing import Any

import msgspec

from kvtier import registry
from kvtier.config import parse
from kvtier.config.structs import Config
from kvtier.types import WriteMode
from kvtier.units import parse_count, parse_nbytes

Schema = dict[str, Any]

_SIZE = {"type": ["string", "integer"], "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGT]iB|B)?\s*$"}
_DURATION = {"type": ["string", "number"], "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(ms|s|min|h)\s*$"}
_COUNT = {"type": ["string", "integer"]}
_OTHERS = {"type": "string", "pattern": ":"}  # package.module:Class

_SAYS = {
    "chunk_tokens": "Tokens of a chunk, the unit of offload; auto: near 8 MiB per rank, 64 to 256 tokens.",
    "store": "What is stored: all, or the prompt alone.",
    "load": "auto: a prefix is computed where that is faster than reading it; always: it is read.",
    "max_wait": "How long a request waits for its hit at most.",
    "overlap": "Whether copies to the device start while the last reads of a hit are under way.",
    "weights_id": "auto: the content of the weight files; or your own word for it.",
    "persist_lora": "Whether chunks of LoRA requests may leave DRAM.",
    "prefetch": "What is read into DRAM before it is asked for.",
    "tiers": "From the fastest to the slowest; the first is always the DRAM.",
    "hooks": "Your own callables, package.module:name.",
    "io": "The I/O process of each rank.",
    "trace": "Where the engine writes down hashes and times of its traffic.",
    "replay": "What `kvtier replay` assumes; the live engine ignores it.",
    "name": "The tier's name in logs and metrics; unique.",
    "kind": "What the tier is.",
    "capacity": "Bytes of the engine on this node, such as 64GiB; for the DRAM also auto.",
    "numa": "NUMA nodes of its memory; auto: the rank's own.",
    "eviction": "Which chunks leave first.",
    "admission": "Which chunks may enter.",
    "codec": "How records are packed: a name, or a list of stages.",
    "write": "When chunks are written into the tier.",
    "deadline": "Of silence: who waits and got no chunk for so long goes on without.",
    "depth": "Operations at a time; auto: as io.threads allow.",
    "medium": "How fast the tier is, from `kvtier bench tiers --output`; null: learned while running.",
    "wrappers": "What stands around the tier, innermost first: for tests.",
    "prefault": "Whether all of its memory is touched at the start.",
    "path": "The tier's own directory, absolute.",
    "url": "Where the server is: redis://host:6379/0, rediss:// with TLS, or unix:///path of its socket.",
    "prefix": "How the names of all its records begin.",
    "user": "Who logs in; empty: the server's default.",
    "password_env": "The environment variable that holds the password.",
    "ca_file": "The certificate that the server's is signed with; empty: those of the system.",
    "timeout_s": "Seconds until a call has failed.",
    "exclusive": "Your promise that no other engine has this directory, though it is on a network file system.",
}


def schema() -> Schema:
    """Give the JSON Schema (draft 2020-12) of a configuration."""
    _, parts = msgspec.json.schema_components((Config,), schema_hook=_anything)
    top: Schema = dict(_shaped(parts["Config"]["properties"], {"max_wait": _DURATION}))
    top["chunk_tokens"] = {"anyOf": [{"const": "auto"}, top["chunk_tokens"]]}
    top["prefetch"] = {"type": "array", "items": _ref("prefetch")}
    top["io"] = _section(parts["IoConfig"], _units(parse.IO_UNITS))
    top["replay"] = _section(parts["ReplayConfig"], _units(parse.REPLAY_UNITS))
    top["hooks"] = _section(parts["HooksConfig"], {"budget": _DURATION})
    top["trace"] = _or_null(_section(parts["TraceConfig"], {}))
    medium = _or_null(_section(parts["MediumConfig"], _units(parse.MEDIUM_UNITS)))
    top["tiers"] = {"type": "array", "minItems": 1, "items": _tiers(parts["TierConfig"], medium)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kvtier",
        **_object(_described(top), ()),
        "$defs": {kind: _plugin(kind) for kind in registry.KINDS if kind != "tier"}
        | {"stages": _stages()},
    }


def _tiers(part: Schema, medium: Schema) -> Schema:
    """Whichever kind a tier is of, with that kind's options."""
    common = _shaped(part["properties"], {"capacity": _auto(_SIZE), "deadline": _DURATION})
    del common["options"], common["persistent"]
    common |= {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,32}$"},
        "numa": _auto(
            {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}
        ),
        "depth": _auto({"type": "integer", "minimum": 2}),
        "eviction": _ref("eviction"),
        "admission": _ref("admission"),
        "codec": {"anyOf": [_ref("codec"), _ref("stages")]},
        "write": {"enum": [str(mode) for mode in WriteMode]},
        "medium": medium,
        "wrappers": {"type": "array", "items": _ref("wrapper")},
    }
    dram = {key: each for key, each in common.items() if key not in parse.NOT_FOR_DRAM}
    kinds = [_object(_described(dram | {"kind": {"const": "dram"}}), ("kind",))]
    for name in registry.TIER:
        own = _options("tier", name)
        properties = common | own["properties"] | {"kind": {"const": name}}
        required = ["kind", "capacity", *own["required"]]
        if registry.is_asked(name):
            required.remove("capacity")
            for key in (*parse.NOT_FOR_ASKED, "numa"):
                del properties[key]
        kinds.append(_object(_described(properties), tuple(required)))
    others = _object(_described(common | {"kind": _OTHERS}), ("kind", "capacity"))
    return {"anyOf": [*kinds, others | {"additionalProperties": True}]}


def _plugin(kind: str) -> Schema:
    """Either the name, or a mapping of the name as `kind` and the plugin's own options."""
    known = [name for name in registry.names(kind) if name not in ("pipeline", "budget")]
    whole = [_OTHERS, {"enum": known}]
    for name in known:
        if name in registry.STAGES or name not in registry.KINDS[kind].table:
            properties, more = {"kind": {"const": name}}, True
            whole.append(_object(properties, ("kind",)) | {"additionalProperties": more})
        else:
            own = _options(kind, name)
            properties = {"kind": {"const": name}, **own["properties"]}
            whole.append(_object(properties, ("kind", *own["required"])))
    whole.append({"type": "object", "properties": {"kind": _OTHERS}, "required": ["kind"]})
    return {"anyOf": whole}


def _stages() -> Schema:
    """Codecs one after the other, or a choice among some."""
    listed = {"type": "array", "minItems": 1, "items": _ref("codec")}
    choice = {
        "type": "object",
        "required": ["among"],
        "properties": {"among": {"type": "array", "minItems": 2}},
    }
    return {"anyOf": [listed, choice]}


def _options(kind: str, name: str) -> Schema:
    """What a plugin may be told."""
    struct = getattr(registry.lookup(kind, name), "Config", None)
    if struct is None:
        return {"properties": {}, "required": []}
    _, parts = msgspec.json.schema_components((struct,), schema_hook=_anything)
    found = parts[struct.__name__]
    return {"properties": _shaped(found["properties"], {}), "required": found.get("required", [])}


def _section(part: Schema, changed: Schema) -> Schema:
    return _object(_shaped(part["properties"], changed), tuple(part.get("required", ())))


def _shaped(properties: Schema, changed: Schema) -> Schema:
    """Name the fields as the YAML does; `changed` are those that are written otherwise than they are kept."""
    shaped = {}
    for field, each in properties.items():
        key = field.removesuffix("_s") if field.removesuffix("_s") in changed else field
        shaped[key] = changed.get(key, each)
    return shaped


def _described(properties: Schema) -> Schema:
    return {key: {**each, "description": _SAYS[key]} for key, each in properties.items()}


def _units(readers: dict[str, Any]) -> Schema:
    written = {parse_nbytes: _SIZE, parse_count: _COUNT}
    return {key: written.get(read, _DURATION) for key, read in readers.items()}


def _object(properties: Schema, required: tuple[str, ...]) -> Schema:
    named = {"type": "object", "properties": properties, "additionalProperties": False}
    return named | ({"required": list(required)} if required else {})


def _auto(each: Schema) -> Schema:
    return {"anyOf": [{"enum": ["auto", None]}, each]}


def _anything(_: type) -> Schema:
    return {"title": "any value"}  # an empty schema would be taken for none


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_null(each: Schema) -> Schema:
    return {"anyOf": [{"type": "null"}, each]}
