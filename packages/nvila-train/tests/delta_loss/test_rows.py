"""Laws of batches by length."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvila_train.delta_loss.forward.batches import batches

# A loaded machine is no fault of the law.
at_leisure = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@at_leisure
@given(st.lists(st.integers(1, 60), max_size=20), st.integers(1, 300))
def test_every_sequence_once_in_rows_that_fit(lengths: list[int], positions: int):
    made = batches(lengths, positions)
    assert sorted(sequence for batch in made for row in batch.rows for sequence in row) == list(range(len(lengths)))
    for batch in made:
        sums = [sum(lengths[sequence] for sequence in row) for row in batch.rows]
        assert batch.length == lengths[batch.rows[0][0]] == max(sums)
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= positions


@at_leisure
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_less_than_half_of_one_batch_is_padding(lengths: list[int]):
    """At most one row of a batch is less than half full, as in first-fit packing."""
    (batch,) = batches(lengths, 10**9)
    sums = [sum(lengths[sequence] for sequence in row) for row in batch.rows]
    assert sum(2 * taken <= batch.length for taken in sums) <= 1


def test_by_hand():
    """Longest first; 3 and 2 go behind 5 and 6, and 9 would be a row too many."""
    first, second = batches([3, 5, 9, 2, 6, 10], 20)
    assert (first.length, first.rows) == (10, ((5,), (2,)))
    assert (second.length, second.rows) == (6, ((4,), (1,), (0, 3)))
