"""What a client may send in a request's kv_transfer_params: anything that JSON can say."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.connectors.vllm.hints import Complaints, Hints
from tests.fuzz.mutations import JSON
from tests.fuzz.scale import examples

KNOWN = st.dictionaries(st.sampled_from(Hints._fields) | st.text(max_size=4), JSON, max_size=6)


class Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@given(JSON | st.fixed_dictionaries({"kvtier": JSON | KNOWN}), JSON)
@examples(150)
def test_any_hint(params: object, own: object) -> None:
    listener = Listener()
    logger = logging.getLogger("kvtier.connectors.vllm.hints")
    logger.addHandler(listener)
    try:
        hints = Hints.of(params, Complaints()).in_session(own)
    finally:
        logger.removeHandler(listener)
    said = listener.said
    assert len(said) <= 1
    assert all(line.isprintable() and len(line) < 500 for line in said), said
    facts = hints.facts()
    assert hints.session_id is None or len(hints.session_id) <= 64
    assert isinstance(hints.store, bool)
    hash(facts)


@pytest.mark.parametrize("params", [None, 3, "boo", [], {"kvtier": None}, {"kvtier": "x" * 10**7}])
def test_what_is_no_mapping_says_nothing(params: object) -> None:
    assert Hints.of(params, Complaints()) == Hints()
