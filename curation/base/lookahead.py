"""Work done in threads, or other processes, a few items ahead of where it is used, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def look_ahead(
    pool: Executor,
    work: Callable[[Item], Outcome],
    items: Iterable[Item],
    window: int,
    weigh: Callable[[Item], int] = lambda item: 0,
    heaviest: int = 0,
) -> Iterator[Outcome]:
    """Yield work(item) in the order of the items, with up to ``window`` of them under way in the pool.

    ``weigh`` gives the weight of an item, such as its bytes: items that weigh more than ``heaviest`` together are not under
    way at once, unless there is only one.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(look_ahead(pool, len, ["a", "bc", ""], 2))
    [1, 2, 0]
    """
    waiting: deque[tuple[Future[Outcome], int]] = deque()
    weight = 0

    def first() -> Outcome:
        nonlocal weight
        future, own = waiting.popleft()
        weight -= own
        return future.result()

    for item in items:
        own = weigh(item)
        while waiting and weight + own > heaviest:
            yield first()
        waiting.append((pool.submit(work, item), own))
        weight += own
        if len(waiting) >= window:
            yield first()

    while waiting:
        yield first()
