"""Events and notices to write: small, complete, and with every kind of value that must survive the way to the database."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

from controller.codec import plan_digest
from controller.core.decision import Advance, Decision, Hold, Promote, RollBack, Weights, Why
from controller.core.gates import GateResult, Verdict
from controller.core.measurement import Counted, Counts, Evidence, Measurement, QueryFailed, Sampled
from controller.core.notice import Level, Line, Notice
from controller.core.plan import Mode, Phase, Plan, Policy, QuantileLimit, RateLimit, Silence
from controller.core.rollout import Applied, Decided, Gathered, Observed, Opened
from controller.ports import FlagChange, NewEntry
from flagspec import Variant

AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def plan(flag: str = "chat-model", environment: str = "production") -> Plan:
    return Plan(
        name="chat-gpt-5",
        environment=environment,
        flag=flag,
        baseline=Variant(model="gpt-4.1"),
        candidate=Variant(model="gpt-5", params={"reasoning_effort": "low"}),
        phases=(
            Phase(name="canary", mode=Mode.LIVE, weight=1_000, bake=timedelta(minutes=5)),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(minutes=5)),
        ),
        gates=(
            RateLimit(name="errors", indicator="error_ratio", limit=0.01),
            QuantileLimit(name="latency", indicator="latency", quantile=0.95, limit_s=3.0),
            Silence(),
        ),
        policy=Policy(),
        labels={"ticket": "CHG-4711", "grüße": "naïve ☃"},
    )


def opened(rollout_id: str, flag: str = "chat-model", environment: str = "production") -> NewEntry:
    the_plan = plan(flag, environment)
    event = Opened(plan=the_plan, plan_digest=plan_digest(the_plan), key="k")
    return NewEntry(rollout_id=rollout_id, seq=1, actor="erin", event=event)


def evidence(query: str, answer: str) -> Evidence:
    return Evidence(
        query=query, at=AT, answer=answer, digest=sha256(answer.encode("utf-8", "surrogatepass")).hexdigest(), note=""
    )


def measurements(answer: str = '{"status":"success","data":[1]}') -> tuple[tuple[str, Measurement], ...]:
    shared = evidence('sum(rate(penstock_requests_total{arm="candidate"}[5m]))', answer)
    return (
        ("errors", Sampled(candidate=Counts(bad=1.5, total=1000.25), baseline=Counts(bad=0, total=9000), evidence=(shared,))),
        (
            "latency",
            Counted(evidence=(shared, evidence("histogram", '{"status":"success","data":[2]}'))),
        ),
        ("candidate-reports", QueryFailed(reason="HTTP 503", evidence=(evidence("up", ""),))),
    )


def decided(
    rollout_id: str,
    seq: int,
    decision: Decision | None = None,
    answer: str | None = None,
    text: str = "the gates passed",
    gathered: Gathered | None = None,
) -> NewEntry:
    decision = decision or Advance(phase=0, why=Why.STARTED, text=text)
    observed = Observed(
        measurements=measurements() if answer is None else measurements(answer),
        results=(
            GateResult(
                gate="errors",
                verdict=Verdict.PASS,
                observed=0.0015,
                limit=0.01,
                interval=(0.0001, 0.009),
                n=1000.25,
                reason="0.15%",
            ),
            GateResult(gate="latency", verdict=Verdict.INSUFFICIENT, reason="400 of 500 requests"),
        ),
        exposure=1000.25,
        gathered=gathered,
    )
    event = Decided(
        decision_id=f"{rollout_id}.{seq}.{decision.kind}",
        decision=decision,
        observed=observed,
        weights_before=Weights(live=1_000, shadow=7),
        weights_after=Weights()
        if isinstance(decision, RollBack)
        else Weights(live=100_000 if isinstance(decision, Promote) else 1_000),
        flag_version_before=4,
        source="gate_check",
    )
    return NewEntry(rollout_id=rollout_id, seq=seq, actor="gate-check", event=event)


def applied(rollout_id: str, seq: int, of: NewEntry) -> NewEntry:
    assert isinstance(of.event, Decided)
    event = Applied(decision_id=of.event.decision_id, weights=of.event.weights_after, flag_version=5)
    return NewEntry(rollout_id=rollout_id, seq=seq, actor="gate-check", event=event)


def hold(rollout_id: str, seq: int) -> NewEntry:
    return decided(rollout_id, seq, Hold(why=Why.BAKING, text="2 of 5 minutes", next_look=AT))


def roll_back(rollout_id: str, seq: int) -> NewEntry:
    return decided(rollout_id, seq, RollBack(why=Why.BREACH, text="12% bad requests, limit 1%"))


def notice(rollout_id: str, seq: int, text: str = "opened by erin") -> Notice:
    return Notice(
        rollout_id=rollout_id,
        seq=seq,
        level=Level.NEWS,
        title="chat-gpt-5: gpt-4.1 to gpt-5",
        text=text,
        standing="canary at 1%",
        phases=("canary 1%", "full 100%"),
        phase=0,
        lines=(Line(gate="errors", verdict=Verdict.PASS, text="0.15%"),),
        exposure=12.5,
        channel="#llm",
        environment="production",
    )


def change(
    weight: int, *, key: str = "chat-model", shadow: int = 0, decision_id: str = "d", environment: str = "production"
) -> FlagChange:
    return FlagChange(
        environment=environment,
        key=key,
        control=Variant(model="gpt-4.1"),
        candidate=Variant(model="gpt-5", params={"reasoning_effort": "low", "temperature": 0.1, "stop": ["ä"]}),
        salt="chat-model/r1",
        unit="user",
        weight=weight,
        shadow_weight=shadow,
        decision_id=decision_id,
    )
