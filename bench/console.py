"""
How fast the console's page of a long rollout opens: `python -m bench.console` prints milliseconds, first and later openings.

It stands beside the other benchmarks: a real Postgres, `penstock serve`'s own application, no network. Its one rule: the rows are as
large as real ones (each decision with nine gates and its evidence), or the number says nothing.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from starlette.testclient import TestClient

from controller.adapters.postgres import app_url
from controller.adapters.postgres.connect import create_database
from controller.adapters.postgres.migrate import upgrade
from controller.codec import plan_digest
from controller.console.web.app import create_web
from controller.core.decision import Advance, Hold, Weights, Why
from controller.core.gates import GateResult, Verdict
from controller.core.measurement import Counted, Evidence
from controller.core.plan import Mode, Phase, Plan, Policy, RateLimit
from controller.core.rollout import Applied, Decided, Gathered, Observed, Opened
from controller.people import hash_password
from controller.ports import NewEntry
from controller.settings import load
from controller.wiring import open_api
from flagspec import Variant
from services.postgres import EmbeddedPostgres

ROLLOUT = "chat-0000beef"
GATES = 9
LEDGER_BYTES = 4_000
"""Of the evidence that a real look records, two texts of it."""


def main(decisions: int = 2_000, times: int = 20) -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        server = EmbeddedPostgres(Path(folder) / "data", durable=False)
        server.start()
        try:
            url = create_database(server.url, "console")
            upgrade(url)
            _measure(app_url(url), folder, decisions, times)
        finally:
            server.stop()


def _measure(url: str, home: str, decisions: int, times: int) -> None:
    login = f"erin={hash_password('a long password')}"
    settings = load({"PENSTOCK_HOME": home, "PENSTOCK_DATABASE_URL": url, "PENSTOCK_CONSOLE_LOGIN": login})
    with open_api(settings) as writer:
        assert writer is not None
        for entry in _rows(decisions):
            writer.ports.audit.append(entry, None)
    with open_api(settings) as api:
        assert api is not None
        client = TestClient(create_web(api), base_url="http://localhost")
        token = client.get("/login").text.split('name="token" value="')[1].split('"')[0]
        answer = client.post(
            "/login", data={"token": token, "login": "erin", "password": "a long password"}, follow_redirects=False
        )
        assert answer.status_code == 303, answer.text
        took = [_ms(client, f"/rollouts/{ROLLOUT}") for _ in range(times + 1)]
    later = sorted(took[1:])
    found = {
        "decisions": decisions,
        "first_ms": round(took[0]),
        "later_ms_p50": round(statistics.median(later)),
        "later_ms_max": round(later[-1]),
        "load": os.getloadavg()[0],
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _ms(client: TestClient, path: str) -> float:
    begun = time.perf_counter()
    answer = client.get(path)
    assert answer.status_code == 200
    return (time.perf_counter() - begun) * 1000


def _rows(decisions: int) -> list[NewEntry]:
    plan = Plan(
        name="chat",
        environment="production",
        flag="chat",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=(
            Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1)),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
        ),
        gates=tuple(RateLimit(name=f"gate-{i}", indicator="error_ratio", limit=0.01) for i in range(GATES)),
        policy=Policy(),
    )
    rows = [NewEntry(rollout_id=ROLLOUT, seq=1, actor="erin", event=Opened(plan=plan, plan_digest=plan_digest(plan), key="k"))]
    first = _decided(2, Advance(phase=0, why=Why.STARTED, text="start with canary at 5%"), Weights(), Weights(live=5_000))
    applied = Applied(decision_id=first.decision_id, weights=first.weights_after, flag_version=1)
    rows += [
        NewEntry(rollout_id=ROLLOUT, seq=2, actor="gate-check", event=first),
        NewEntry(rollout_id=ROLLOUT, seq=3, actor="gate-check", event=applied),
    ]
    for seq in range(4, decisions + 3):
        hold = Hold(why=Why.BAKING if seq // 7 % 2 else Why.NOT_ENOUGH_EVIDENCE, text=f"gate-3: not proven yet, look {seq}")
        event = _decided(seq, hold, Weights(live=5_000), Weights(live=5_000))
        rows.append(NewEntry(rollout_id=ROLLOUT, seq=seq, actor="gate-check", event=event))
    return rows


def _decided(seq: int, decision: Advance | Hold, before: Weights, after: Weights) -> Decided:
    result = GateResult(
        gate="",
        verdict=Verdict.INSUFFICIENT,
        observed=0.004 + seq % 50 / 20_000,
        limit=0.01,
        interval=(0.001, 0.02),
        unit="share",
        n=100.0 + seq,
        n_baseline=2_000.0 + seq,
        log_e_breach=-0.5,
        log_e_proof=1.5,
        log_e_needed=3.7,
        reason=f"0.4% of {100 + seq} requests failed (0.1% to 2%), limit 1%; not proven yet",
    )
    seen = Counted(evidence=(_evidence(seq),))
    text = json.dumps({"x": "0" * LEDGER_BYTES, "seq": seq})
    observed = Observed(
        measurements=tuple((f"gate-{i}", seen) for i in range(GATES)),
        results=tuple(replace(result, gate=f"gate-{i}") for i in range(GATES)),
        exposure=100.0 + seq,
        gathered=Gathered(before=text, traffic=text + " ", after=text + "  "),
    )
    return Decided(
        decision_id=f"{ROLLOUT}.{seq}.{decision.kind}",
        decision=decision,
        observed=observed,
        weights_before=before,
        weights_after=after,
        flag_version_before=1,
        source="gate_check",
    )


def _evidence(seq: int) -> Evidence:
    from datetime import UTC, datetime
    from hashlib import sha256

    answer = json.dumps({"status": "success", "data": {"result": [[seq, "1"]] * 40}})
    query = 'sum by (le) (increase(penstock_request_duration_seconds_bucket{arm="candidate", flag="chat"}[5m]))'
    at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=15 * seq)
    return Evidence(query=query, at=at, answer=answer, digest=sha256(answer.encode()).hexdigest())


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
