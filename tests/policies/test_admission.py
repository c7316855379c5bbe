from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.admission.cost_aware import CostAwarePolicy
from kvtier.policies.admission.min_tokens import MinTokensPolicy
from kvtier.policies.admission.second_use import SecondUsePolicy
from kvtier.policies.kit.ghosts import Ghosts, Seen
from kvtier.policies.kit.sketch import Sketch
from kvtier.testing.policies import FixedFacts, chain
from kvtier.types import BlockKey


def request(keys: list[BlockKey]) -> RequestFacts:
    return RequestFacts("r", (GroupKeys(keys, 16, None),), 0.0, RequestHints())


def test_second_use_admits_what_a_second_request_has_in_its_prefix() -> None:
    policy = SecondUsePolicy(SecondUsePolicy.Config(), FixedFacts())
    keys = chain("a", 3)
    first = request(keys[:2])
    policy.arrived(first)
    assert not any(policy.admits(key, 16) for key in keys[:2])
    assert not any(policy.admits(key, 16) for key in keys[:2]), "asking is no use"
    policy.arrived(request(keys))
    assert [policy.admits(key, 16) for key in keys] == [True, True, False]


def test_second_use_counts_what_decoding_made() -> None:
    policy = SecondUsePolicy(SecondUsePolicy.Config(), FixedFacts())
    keys = chain("a", 3)
    growing = keys[:1]
    first = request(growing)
    policy.arrived(first)
    growing.extend(keys[1:])
    policy.departed(first)
    assert not policy.admits(keys[0], 16)
    policy.arrived(request(keys))
    assert all(policy.admits(key, 16) for key in keys)


def test_min_tokens_admits_the_head_of_a_long_prefix() -> None:
    policy = MinTokensPolicy(MinTokensPolicy.Config(tokens=48), FixedFacts())
    short, long = chain("s", 2), chain("l", 3)
    policy.arrived(request(short))
    policy.arrived(request(long))
    assert not policy.admits(short[0], 16)
    assert [policy.admits(key, 16) for key in long] == [True, True, True]


class Costly(FixedFacts):
    """A second per byte to read; computing costs the square of the tokens."""

    def prefill_s(self, start: int, end: int) -> float:
        return (end / 16) ** 2 - (start / 16) ** 2

    def read_s(self, nbytes: int) -> float:
        return 3.0 * nbytes


def test_cost_aware_admits_what_is_faster_to_read() -> None:
    policy = CostAwarePolicy(CostAwarePolicy.Config(), Costly())
    keys = chain("a", 4)
    policy.arrived(request(keys[:2]))
    assert not policy.admits(keys[0], 16), "6 s to read, 4 s to compute"
    policy.arrived(request(keys))
    assert all(policy.admits(key, 16) for key in keys), "12 s to read, 16 s to compute"


def test_cost_aware_admits_everything_before_anything_is_measured() -> None:
    policy = CostAwarePolicy(CostAwarePolicy.Config(), FixedFacts())
    keys = chain("a", 1)
    policy.arrived(request(keys))
    assert policy.admits(keys[0], 16)


def test_what_is_remembered_is_bounded() -> None:
    seen, ghosts = Seen(10), Ghosts()
    keys = chain("k", 100)
    for key in keys:
        seen.add([key])
        ghosts.add(key, 10)
    assert all(key in seen and key in ghosts for key in keys[-10:])
    assert sum(key in seen for key in keys) <= 21
    assert len(ghosts) == 10
    assert ghosts.take(keys[-1])
    assert not ghosts.take(keys[-1])


def test_a_sketch_counts_and_forgets_by_halves() -> None:
    sketch = Sketch(1024)
    often, seldom = chain("x", 2)
    for _ in range(8):
        sketch.add(often)
    sketch.add(seldom)
    assert sketch.estimate(often) >= 8
    assert 1 <= sketch.estimate(seldom) < 8
    for key in chain("noise", 30000):
        sketch.add(key)
    assert sketch.estimate(often) < 15
