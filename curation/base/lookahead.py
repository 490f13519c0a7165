"""Work done in threads a few items ahead of where it is used, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def look_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Outcome], items: Iterable[Item], window: int
) -> Iterator[Outcome]:
    """Yield work(item) in the order of the items, with up to ``window`` of them under way in the pool.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(look_ahead(pool, len, ["a", "bc", ""], 2))
    [1, 2, 0]
    """
    waiting: deque[Future[Outcome]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()

    while waiting:
        yield waiting.popleft().result()
