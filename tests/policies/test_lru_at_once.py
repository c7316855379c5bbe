"""LRU takes chunks in and out many at a time as it does one by one."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.policies.eviction.lru import LruPolicy
from kvtier.testing.policies import FixedFacts
from kvtier.types import BlockKey

KEYS = [BlockKey(bytes([i % 3, i])) for i in range(14)]
ABOVE = [None, 0, 1, 2, 3, 4, 5, 3, 7, 8, 9, 8, 11, None]  # what each continues
ACTS = st.tuples(
    st.sampled_from(["insert", "up", "remove", "evict", "touch"]),
    st.lists(st.integers(0, 13), min_size=1, max_size=6, unique=True),
)


def nobody(_: BlockKey) -> bool:
    return False


def upwards(i: int, n: int) -> list[int]:
    """List a chunk and up to `n` that it continues, tail first."""
    found, at = [i], ABOVE[i]
    while at is not None and len(found) < n:
        found.append(at)
        at = ABOVE[at]
    return found


@given(st.lists(ACTS, max_size=25))
def test_as_one_by_one(acts: list[tuple[str, list[int]]]) -> None:
    many, single = LruPolicy(FixedFacts()), LruPolicy(FixedFacts())
    for act, chosen in acts:
        numbers = upwards(chosen[0], len(chosen)) if act == "up" else chosen
        keys = [KEYS[i] for i in numbers]
        if act in ("insert", "up"):
            parents = [None if (at := ABOVE[i]) is None else KEYS[at] for i in numbers]
            many.insert_all(keys, parents)
            for key, parent in zip(keys, parents, strict=True):
                single.insert(key, parent)
        elif act == "touch":
            for policy in (many, single):
                policy.touch(keys[0])
        else:
            if act == "evict":
                keys = single.victims(len(keys), nobody)
            many.remove_all(keys)
            for key in keys:
                single.remove(key)
        assert many.victims(20, nobody) == single.victims(20, nobody)
