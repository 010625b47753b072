"""The memory remembers what was shown once, further back than anything else in the model can see."""

import pytest

from titans_ts.benchmark.recall import BACKBONE, CONTEXT, DISTANCE, PATCH, reach, recall_errors
from titans_ts.models.config import VARIANTS


@pytest.mark.parametrize("variant", ["lmm", *(pytest.param(name, marks=pytest.mark.long) for name in VARIANTS[1:])])
def test_with_its_memory_the_error_is_at_most_half(variant):
    row = recall_errors(variant)
    assert row["reach"] < row["distance"] == DISTANCE
    for without in ("emptied", "exchanged", "never written", "variance"):
        assert row["with memory"] <= 0.5 * row[without], row


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_remember_too(variant, seed):
    row = recall_errors(variant, seed=seed)
    for without in ("emptied", "exchanged"):
        assert row["with memory"] <= 0.5 * row[without], row


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_deep_memories_remember_too(variant):
    row = recall_errors(variant, depth=2)
    for without in ("emptied", "exchanged"):
        assert row["with memory"] <= 0.5 * row[without], row


def test_the_distance_is_checked_before_anything_is_fitted():
    with pytest.raises(ValueError, match="sees 25 patches back"):
        recall_errors("lmm", conv=24)
    assert reach(BACKBONE, CONTEXT, PATCH) == 5
