from datetime import UTC, datetime, timedelta

from controller.adapters.memory import MemoryAudit, MemoryFlags, MemoryMetrics
from controller.codec import plan_digest
from controller.commands import start
from controller.core.gates import GateResult, Verdict
from controller.core.measurement import Evidence, NoData
from controller.core.plan import RateLimit
from controller.ports import Ports
from controller.spec import RolloutSpec
from controller.sweep import look
from flows import evidence
from tests.flows.conftest import spec

AT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ERRORS = RateLimit(name="error-rate", indicator="error_ratio", limit=0.01)


def _result(verdict: Verdict, **numbers: object) -> GateResult:
    return GateResult(gate="error-rate", verdict=verdict, reason="a | b < c", **numbers)  # type: ignore[arg-type]


def test_shares_are_shown_as_percentages_and_the_worst_gate_first() -> None:
    passed = _result(Verdict.PASS, unit="share", observed=0.0005, limit=0.01, interval=(1e-19, 0.00283), n=2000.0)
    rows = evidence.table([passed, _result(Verdict.BREACH, unit="share", observed=0.15, limit=0.01)]).splitlines()
    assert rows[2] == "| error-rate | **BREACH** | 15% | 1% |  | 0 | a \\| b &lt; c |"
    assert rows[3] == "| error-rate | pass | 0.05% | 1% | 0% … 0.283% | 2000 | a \\| b &lt; c |"


def test_queries_are_shown_to_the_letter_even_with_backticks() -> None:
    asked = Evidence(query='x{a=~"```|b"}', at=AT, answer="", digest="ab" * 32, note="timed out")
    shown = evidence.queries([("error-rate", NoData(reason="none", evidence=(asked,)))])
    assert 'x{a=~"```|b"}' in shown.splitlines()
    assert shown.count("````") == 2
    assert "2026-03-02T12:00:00.000000Z" in shown and "(timed out)" in shown


def test_a_key_has_only_the_letters_that_prefect_takes() -> None:
    assert evidence.artifact_key("chat_gpt-5.1-0a1b2c3d") == "gate-chat-gpt-5-1-0a1b2c3d"


def test_the_page_shows_how_long_each_phase_lasted() -> None:
    now = [AT]
    audit = MemoryAudit(clock=lambda: now[0])
    flags = MemoryFlags(clock=lambda: now[0])
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=MemoryMetrics())
    plan = RolloutSpec.model_validate(spec("chat")).to_plan()
    opened = start(plan, plan_digest(plan), ports, actor="bob", key="k")
    look(opened.id, ports, may_raise=True)
    now[0] += timedelta(minutes=15)
    swept = look(opened.id, ports, may_raise=True)
    assert swept.tick is not None
    entries = audit.entries(opened.id)
    news = evidence.news(entries)
    assert news is not None
    page = evidence.page(swept.tick.rollout, entries, news)
    assert "| canary-5 | 5% | 1h | 2026-03-02 12:00:00 | here now |" in page
    assert "canary-5 5% :active, 2026-03-02T12:00:00, 2026-03-02T12:15:00" in page
    assert "`██████████░░░░░░░░░░` canary-5 5%, 1 of 2 phases" in page


def test_a_hold_for_the_same_reason_is_no_news() -> None:
    now = [AT]
    audit = MemoryAudit(clock=lambda: now[0])
    flags = MemoryFlags(clock=lambda: now[0])
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=MemoryMetrics())
    plan = RolloutSpec.model_validate(spec("chat")).to_plan()
    opened = start(plan, plan_digest(plan), ports, actor="bob", key="k")
    assert evidence.news(audit.entries(opened.id)) is None
    told: list[bool] = []
    for _ in range(3):
        look(opened.id, ports, may_raise=True)
        told.append(evidence.news(audit.entries(opened.id)) is not None)
        now[0] += timedelta(minutes=15)
    assert told == [True, True, False]
