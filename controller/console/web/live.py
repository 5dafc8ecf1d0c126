"""
Pages that change while one looks at them: a browser is told that something is new, and asks for its page again.

One look a second at the ends of the two logs serves every browser. Its one rule: a stream carries no data, so that there is nothing in it
that a page would not show the same person.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool

from controller.ports import PortError

log = structlog.get_logger("penstock.console")

LOOK_S = 1.0
STREAMS_MAX = 200
AGAIN_S = 30.0
"""So often a stream asks whether its session still is one."""


class Full(Exception):
    """As many browsers as may listen do so already."""


class Live:
    """
    Args:
        ends: Says where the logs end, as a text that is another when they have grown. Raises PortError.
    """

    def __init__(self, ends: Callable[[], str]) -> None:
        self._ends = ends
        self._listening = 0
        self._seen = ""
        self._changed = asyncio.Condition()
        self._looking: asyncio.Task[None] | None = None

    async def stream(self, still: Callable[[], Coroutine[None, None, bool]]) -> AsyncIterator[str]:
        """
        Yields where the logs end, first at once, then whenever it is another.

        Args:
            still: Whether whoever listens may go on.

        Raises:
            Full: too many listen.
        """
        if self._listening >= STREAMS_MAX:
            raise Full(f"{STREAMS_MAX} browsers listen already")
        self._listening += 1
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            told, asked = "", asyncio.get_running_loop().time()
            while True:
                async with self._changed:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait_for(partial(self._is_not, told)), AGAIN_S)
                    now = self._seen
                if (time := asyncio.get_running_loop().time()) - asked >= AGAIN_S:
                    asked = time
                    if not await still():
                        return
                if now != told:
                    told = now
                    yield told
        finally:
            self._listening -= 1

    def _is_not(self, told: str) -> bool:
        return self._seen != told

    async def _look(self) -> None:
        while self._listening:
            try:
                ends = await run_in_threadpool(self._ends)
            except PortError as exc:
                ends = f"unreadable: {exc}"
            if ends != self._seen:
                async with self._changed:
                    self._seen = ends
                    self._changed.notify_all()
            await asyncio.sleep(LOOK_S)
