"""vLLM without kvtier agrees with itself on the test models: whatever differs later is ours."""

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts

TOKENS = 40


@pytest.fixture(scope="module", params=["llama", "gemma"])
def alone(request: pytest.FixtureRequest, engine: EngineFactory) -> Engine:
    return engine(EngineConfig(model=request.getfixturevalue(request.param), blocks=200))


def test_answers_are_the_same_however_they_are_computed(alone: Engine) -> None:
    asked = prompts(8, 1000, seed=1)
    assert alone.reset()
    one_by_one = [alone.generate([prompt], TOKENS)[0] for prompt in asked]
    cached = alone.answers(asked, TOKENS)
    assert all(answer.cached >= 896 for answer in cached), "the prefix cache was to serve them"
    assert [answer.tokens for answer in cached] == one_by_one
    assert alone.reset()
    assert alone.generate(asked, TOKENS) == one_by_one, "eight at a time"
    assert alone.reset()
    turned = alone.generate(asked[5:] + asked[:5], TOKENS)
    assert turned[3:] + turned[:3] == one_by_one, "in another order"
    assert alone.reset()
    assert all(answer.cached == 0 for answer in alone.answers(asked[:2], 1))


def test_turns_on_the_own_cache_equal_recomputed_ones(alone: Engine) -> None:
    assert alone.reset()
    asked = prompts(4, 500, seed=2)
    turns: list[list[list[int]]] = []
    for turn in range(3):
        answers = alone.generate(asked, TOKENS)
        turns.append(answers)
        more = prompts(4, 300, seed=3 + turn)
        asked = [p + a + m for p, a, m in zip(asked, answers, more, strict=True)]
    for at in range(4):
        prompt = prompts(4, 500, seed=2)[at]
        for turn in range(3):
            assert alone.reset()
            assert alone.generate([prompt], TOKENS)[0] == turns[turn][at]
            prompt = prompt + turns[turn][at] + prompts(4, 300, seed=3 + turn)[at]


def test_answers_are_varied_and_depend_on_all_of_the_context(alone: Engine) -> None:
    asked = prompts(6, 1000, seed=4)
    answers = alone.generate(asked, TOKENS)
    assert all(len(set(answer)) >= TOKENS // 3 for answer in answers)
    assert len({tuple(answer) for answer in answers}) == len(answers)
    for at in (0, 384, 768):  # one block of another prompt's tokens, as a mixed-up chunk would be
        mixed = list(asked[0])
        mixed[at : at + 128] = asked[1][at : at + 128]
        assert alone.generate([mixed], TOKENS)[0] != answers[0]
