"""Which inputs share a batch."""

from hypothesis import given
from hypothesis import strategies as st

from broker.wire import Job, JobClass, Pooling
from worker.engines.encoder.batching import WaitingItems
from worker.engines.encoder.request import Item, Request, Results


def request(*lengths: int, job_class: JobClass = "interactive") -> tuple[Request, list[Item]]:
    pooling = Pooling(inputs=("",) * len(lengths))
    job = Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        task="embed",
        pooling=pooling,
        job_class=job_class,
    )
    made = Request(job, pooling)
    return made, [Item(made, index, [0] * length) for index, length in enumerate(lengths)]


def waiting(*groups: tuple[Request, list[Item]], tokens: int = 100, rows: int = 8) -> WaitingItems:
    items = WaitingItems(tokens, rows)
    for _, group in groups:
        items.add(group)
    return items


def lengths(batch: list[Item]) -> list[int]:
    return [item.length for item in batch]


def test_inputs_of_about_the_same_length_share_a_batch() -> None:
    items = waiting(request(50, 10, 48, 9), request(11, 49))
    assert lengths(items.take()) == [50, 49]
    assert lengths(items.take()) == [11, 10, 9]
    assert lengths(items.take()) == [48]
    assert items.take() == []


def test_a_single_input_waits_for_one_batch_of_each_other_request() -> None:
    many, one = request(*[50] * 20), request(3)
    items = waiting(many, one)
    assert {item.request for item in items.take()} == {many[0]}
    assert one[0] in {item.request for item in items.take()}


def test_interactive_requests_choose_first() -> None:
    batch, person = request(*[50] * 20, job_class="batch"), request(3, 3)
    items = waiting(batch, person)
    assert lengths(items.take()) == [3, 3]
    assert lengths(items.take()) == [50, 50]


def test_a_longer_input_than_the_budget_goes_alone() -> None:
    assert lengths(waiting(request(500, 400, 90)).take()) == [500]


def test_a_request_that_left_is_computed_no_further() -> None:
    left, stays = request(10, 10), request(10)
    items = waiting(left, stays)
    items.remove(left[0])
    assert [item.request for item in items.take()] == [stays[0]]
    assert len(items) == 0


@given(
    groups=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=20), max_size=6),
    tokens=st.integers(1, 400),
    rows=st.integers(1, 8),
)
def test_each_input_comes_once_within_the_bounds(
    groups: list[list[int]], tokens: int, rows: int
) -> None:
    requests = [request(*group) for group in groups]
    items = waiting(*requests, tokens=tokens, rows=rows)
    taken: list[Item] = []
    while batch := items.take():
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * batch[0].length <= tokens
        assert lengths(batch) == sorted(lengths(batch), reverse=True)
        taken += batch
    assert sorted(map(id, taken)) == sorted(id(item) for _, group in requests for item in group)


async def test_rows_come_in_the_order_of_the_inputs() -> None:
    results = Results(1, 4)
    results.put({3: b"3"})
    assert await results.take() == ()
    results.put({1: b"1"})
    assert await results.take() == (b"1",)
    results.put({2: b"2"})
    assert await results.take() == (b"2", b"3")
    assert results.complete
