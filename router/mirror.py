"""
Mirrored copies: a request goes to the candidate as well, and its answer to no user; together with the user's own it makes a pair.

Its one rule: the user never notices. Copies run beside the user's request, take only what limits and their own budget leave free, and are
dropped where there is no room; of the user's answer only bytes are taken down as they pass.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

from flagspec import RouteFlag
from router import config
from router.admission import Admission
from router.booking import Ledger, Refusal, RequestKey
from router.caller import Caller, Slice
from router.caps import Fit
from router.exchange import CURRENT
from router.flags import FlagTable
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.outcome import Failed
from router.pairs import PairDesk, Recording, Side
from router.request import Reply, Request
from router.selection import Plan, Step

log = get_logger()


class Original:
    """
    The user's own request, as its copy sees it. A context manager: whatever ends the request before there is a reply, nobody has
    answered it.

    Args:
        recording: Takes the answer down; None where nobody wants to know.

    Attributes:
        answered: Whether there was an answer, once that is known: of a stream, from its first token on.
        ended: The whole answer, once it has passed.
    """

    __slots__ = ("_recording", "answered", "ended")

    def __init__(self, recording: Recording | None) -> None:
        loop = asyncio.get_running_loop()
        self._recording = recording
        self.answered: asyncio.Future[bool] = loop.create_future()
        self.ended: asyncio.Future[Side] = loop.create_future()

    def __enter__(self) -> "Original":
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self.answered.done():
            self.answered.set_result(False)
            self._end(None)

    async def replied(self, reply: Reply) -> Reply:
        """The same reply to the user's eye; waits for nothing."""
        self.answered.set_result(reply.status == 200)
        if reply.events is not None and self._recording is not None:
            events = self._passing(reply, reply.events, self._recording)
            # Begun at once: closing a generator that never began runs nothing of it, and the answer would never be booked.
            await anext(events)
            return replace(reply, events=events)
        if self._recording is not None:
            self._recording.hear(reply.body)
        self._end(reply)
        return reply

    async def _passing(
        self, reply: Reply, events: AsyncGenerator[bytes, None], recording: Recording
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(events):
                yield b""
                async for chunk in events:
                    recording.hear(chunk)
                    yield chunk
        finally:
            self._end(reply)

    def _end(self, reply: Reply | None) -> None:
        if self._recording is None or self.ended.done():
            return
        attempt = None if reply is None else reply.attempt
        self.ended.set_result(
            Side(
                model="" if reply is None else reply.model,
                status=None if reply is None else reply.status,
                outcome=None if attempt is None else attempt.outcome,
                fallback=reply is not None and reply.fallback,
                booked=None if attempt is None else attempt.booked,
                recording=self._recording,
            )
        )


class Mirror:
    """
    Args:
        desk: Gets the pairs; None: answers are discarded.
    """

    def __init__(
        self,
        spec: config.Shadow,
        caller: Caller,
        admission: Admission,
        ledger: Ledger,
        metrics: RouterMetrics,
        flags: FlagTable,
        desk: PairDesk | None = None,
    ) -> None:
        self._spec, self._caller, self._admission, self._ledger, self._metrics = spec, caller, admission, ledger, metrics
        self._flags, self._desk = flags, desk
        self._copies: set[asyncio.Task[None]] = set()
        self._pairing: set[asyncio.Task[None]] = set()

    def send(self, plan: Plan, step: Step, fit: Fit | Failed, request: Request) -> Original:
        """Sends a copy, or counts why not. Whoever answers the user tells the `Original` how it went."""
        metrics, deaf = self._metrics, Original(None)
        if len(self._copies) >= self._spec.concurrency:
            metrics.shadow(plan.route, plan.flag, step.model, "skipped_concurrency")
            return deaf
        if isinstance(fit, Failed) and step.model in self._caller.targets:
            metrics.shadow(plan.route, plan.flag, step.model, "skipped_unfit")
            return deaf
        if self._too_dear(step.model):
            metrics.shadow(plan.route, plan.flag, step.model, "skipped_budget")
            return deaf
        original = deaf if self._desk is None else Original(self._desk.recording())
        copy = self._copy(plan, step, fit, request, original)
        _kept(self._copies, copy)
        return original

    async def close(self) -> None:
        """Lets copies under way finish for as long as the configuration says, then drops them; pairs likewise."""
        for tasks in (self._copies, self._pairing):
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=self._spec.drain.total_seconds())
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        if self._desk is not None:
            await self._desk.close()

    def _too_dear(self, model: str) -> bool:
        copies = self._ledger.copies
        # A price that nobody knows keeps no promise.
        return copies.exhausted(self._ledger.now()) or (copies.priced and model not in self._ledger.rates)

    async def _copy(self, plan: Plan, step: Step, fit: Fit | Failed, request: Request, original: Original) -> None:
        """The same calls as a user's, read to the end for time, tokens and price, and shown to no user."""
        if (exchange := CURRENT.get()) is not None:
            CURRENT.set(exchange.copy())  # of this task's own context
        key = RequestKey(
            route=plan.route,
            flag=plan.flag,
            arm="shadow",
            model=step.model,
            streaming=request.stream,
            endpoint=request.weight.endpoint,
        )
        attempt = self._ledger.begin(key, step.model, request.size, assigned=True)
        if isinstance(fit, Failed):
            attempt.never_sent(fit)
            return self._metrics.shadow(plan.route, plan.flag, step.model, "failed")
        attempt.permit = self._admission.enter_copy(step.model, request.weight.input)
        if attempt.permit is None:
            return self._metrics.shadow(plan.route, plan.flag, step.model, "skipped_limit")
        flag, at = self._flags.get(plan.flag), self._ledger.now()
        time = Slice.of(self._caller.targets[step.model], stream=request.stream)
        held = self._hold(step.model, request)
        heard = None if self._desk is None else self._desk.recording()
        status: int | None = None
        try:
            with Refusal() as refusal:
                reply = await self._caller.call(request, step, fit, attempt, key, time)
                if isinstance(reply, Failed):
                    status = reply.status
                    if reply.outcome == "client_error":
                        refusal.hold(attempt, reply)
                        # As long as the copy itself might have taken to answer.
                        await asyncio.wait([original.answered], timeout=time.whole_s)
                        refusal.blame(candidate=original.answered.done() and original.answered.result())
                else:
                    status = reply.status
                    await _read(reply, heard)
        except Exception as exc:
            log.error("shadow_bug", request_id=request.request_id, model=step.model, error=type(exc).__name__)
        finally:
            self._ledger.copies.use(-held[0], -held[1], self._ledger.now())
            self._metrics.shadow(plan.route, plan.flag, step.model, "mirrored" if attempt.outcome == "ok" else "failed")
        if self._desk is not None and heard is not None:
            shadow = Side(
                model=step.model, status=status, outcome=attempt.outcome, fallback=False, booked=attempt.booked, recording=heard
            )
            # Apart from the copies under way: a user who reads slowly shall not take up their places.
            _kept(self._pairing, self._pair(self._desk, request, flag, plan.route, original, shadow, at))

    async def _pair(
        self, desk: PairDesk, request: Request, flag: RouteFlag | None, route: str, original: Original, shadow: Side, at: datetime
    ) -> None:
        try:
            # However long the user's stream takes: its own timeouts end it.
            await desk.offer(request, flag, route, await original.ended, shadow, at)
        except Exception as exc:
            log.error("pair_bug", request_id=request.request_id, error=type(exc).__name__)

    def _hold(self, model: str, request: Request) -> tuple[float, float]:
        """Sets aside what its input costs at least, so that many copies at once do not all find the same budget unused."""
        rates, tokens = self._ledger.rates.get(model), request.weight.input
        held = (0.0 if rates is None else tokens * rates.input, float(tokens))
        self._ledger.copies.use(*held, self._ledger.now())
        return held


def _kept(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Starts it, and holds it until it ends: the loop itself holds tasks weakly."""
    task = asyncio.get_running_loop().create_task(work, name="shadow")
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _read(reply: Reply, heard: Recording | None) -> None:
    """An answer to its end."""
    if reply.events is None:
        if heard is not None:
            heard.hear(reply.body)
        return
    async with aclosing(reply.events) as events:
        async for chunk in events:
            if heard is not None:
                heard.hear(chunk)
