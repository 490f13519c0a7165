"""How the samples of an epoch are split over ranks and workers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.plan import Plan, PlanError


@st.composite
def plans(draw):
    ranks, workers, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.integers(1, 40), min_size=ranks * workers, max_size=20))
    while sum(rows) < batch * ranks * workers:
        rows.append(40)
    return Plan(tuple(rows), batch, ranks, workers, draw(st.integers(0, 5)))


@settings(deadline=None, max_examples=200)
@given(plans(), st.integers(0, 3))
def test_every_reader_gets_as_much_and_no_sample_is_read_twice(plan, epoch):
    seen = []
    for rank in range(plan.ranks):
        for worker in range(plan.workers):
            spans = plan.spans(epoch, rank, worker)
            assert all(0 <= span.first < span.last <= plan.rows[span.shard] for span in spans)
            part = [(span.shard, row) for span in spans for row in range(span.first, span.last)]
            assert len(part) == sum(plan.rows) // plan.readers
            assert len(part) // plan.batch_size == plan.batches_each
            seen += part
    assert len(seen) == len(set(seen))
    assert sum(plan.rows) - len(seen) < plan.readers
    assert plan.steps == plan.batches_each * plan.workers > 0


def test_epochs_have_other_orders_and_the_same_ones_again():
    plan = Plan((10,) * 30, 4)
    order = [[span.shard for span in plan.spans(epoch, 0, 0)] for epoch in (0, 1, 0)]
    assert order[0] == order[2] != order[1]
    assert sorted(order[0]) == sorted(order[1]) == list(range(30))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_a_resumed_loader_goes_on_with_the_next_batch(workers, each, data):
    """A loader takes from its workers in turn; after ``done`` steps a new loader must give the rest in the same order."""
    plan = Plan((2 * each,) * workers, 2, workers=workers)
    assert plan.batches_each == each
    whole = [(step % workers, step // workers) for step in range(plan.steps)]  # (part, number of its batch)
    done = data.draw(st.integers(0, plan.steps - 1))
    states = [plan.resumed(worker, done) for worker in range(workers)]
    queues = [[(part, number) for number in range(skipped, each)] for part, skipped in states]
    rest = []
    while any(queues):
        for queue in queues:
            if queue:
                rest.append(queue.pop(0))
    assert rest == whole[done:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((10, 10, 10), 2, 1, 4), "3 shards are too few for 1 ranks x 4 workers; set data.workers to 3"),
        (((10, 0, 0), 2, 1, 2), "1 shards are too few .*; set data.workers to 1"),
        (((10, 10), 2, 4, 1), "2 shards are too few for 4 ranks; use fewer devices, or split the data"),
        (((3, 3), 4, 2, 1), "batch_size: 4 is more than the 3 samples"),
    ],
)
def test_too_little_data_is_refused_with_the_remedy(values, message):
    with pytest.raises(PlanError, match=message):
        Plan(*values)
