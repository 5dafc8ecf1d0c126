"""
Mirrored copies: a request goes to the candidate as well, and its answer to nobody.

Its one rule: the user never notices. Copies run beside the user's request, take only what limits leave free, and are dropped where
there is no room.
"""

import asyncio
from contextlib import aclosing

from router import config
from router.admission import Admission
from router.booking import Ledger, Refusal, RequestKey
from router.caller import Caller, Slice
from router.caps import Fit
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.outcome import Failed
from router.request import Reply, Request
from router.selection import Plan, Step

log = get_logger()


class Mirror:
    def __init__(self, spec: config.Shadow, caller: Caller, admission: Admission, ledger: Ledger, metrics: RouterMetrics) -> None:
        self._spec, self._caller, self._admission, self._ledger, self._metrics = spec, caller, admission, ledger, metrics
        self._copies: set[asyncio.Task[None]] = set()

    def send(self, plan: Plan, step: Step, fit: Fit | Failed, request: Request, answered: "asyncio.Future[bool]") -> None:
        """
        Sends a copy, or counts why not.

        Args:
            answered: Whether the user's own request brought an answer, once that is known.
        """
        if len(self._copies) >= self._spec.concurrency:
            return self._metrics.shadow(plan.route, plan.flag, step.model, "skipped_concurrency")
        if isinstance(fit, Failed) and step.model in self._caller.targets:
            return self._metrics.shadow(plan.route, plan.flag, step.model, "skipped_unfit")
        task = asyncio.get_running_loop().create_task(self._copy(plan, step, fit, request, answered), name="shadow")
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def close(self) -> None:
        """Lets copies under way finish for as long as the configuration says, then drops them."""
        if self._copies:
            _, late = await asyncio.wait(self._copies, timeout=self._spec.drain.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _copy(self, plan: Plan, step: Step, fit: Fit | Failed, request: Request, answered: "asyncio.Future[bool]") -> None:
        """The same calls as a user's, read to the end for time, tokens and price, and shown to nobody."""
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
        time = Slice.of(self._caller.targets[step.model], stream=request.stream)
        try:
            with Refusal() as refusal:
                reply = await self._caller.call(request, step, fit, attempt, key, time)
                if isinstance(reply, Failed) and reply.outcome == "client_error":
                    refusal.hold(attempt, reply)
                    # As long as the copy itself might have taken to answer.
                    await asyncio.wait([answered], timeout=time.whole_s)
                    refusal.blame(candidate=answered.done() and answered.result())
            if isinstance(reply, Reply) and reply.events is not None:
                async with aclosing(reply.events) as events:
                    async for _ in events:
                        pass
        except Exception as exc:
            log.error("shadow_bug", request_id=request.request_id, model=step.model, error=type(exc).__name__)
        finally:
            self._metrics.shadow(plan.route, plan.flag, step.model, "mirrored" if attempt.outcome == "ok" else "failed")
