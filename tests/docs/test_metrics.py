"""The page of metrics is the table of metrics."""

from kvtier.brain.stats import METRICS
from tests.docs import metrics


def test_the_page_is_what_the_table_makes_of_it() -> None:
    assert metrics.PAGE.read_text() == metrics.render(), "run: python -m tests.docs.metrics"


def test_every_metric_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert len({each.name for each in METRICS}) == len(METRICS)
    for each in METRICS:
        assert each.name.startswith(("kvtier:", "vllm:kv_offload_tiering_"))
        assert each.help.endswith("."), each
