"""The digest flow: posted once, when the plan's time has come."""

from datetime import timedelta

from controller.digest import DIGEST_AT
from flows.registry import DEPLOYMENTS
from tests.flows.conftest import World, spec


def test_a_digest_is_posted_once_when_its_time_has_come(world: World) -> None:
    assert [d.cron for d in DEPLOYMENTS if d.name == "digest"] == ["*/15 * * * *"]
    at = world.now + timedelta(hours=2)
    asks = spec() | {"notify": {"slack": {"channel": "#llm", "digest": f"{at:%H:%M}"}}}
    run = world.run("rollout", spec=asks, requested_by="alice")
    assert run.state_type is not None and run.state_type.value == "PAUSED"
    assert world.run("digest").state_name == "Nothing due"
    runs = [world.later(hours=2).run("digest"), world.later(minutes=15).run("digest")]
    assert [r.state_name for r in runs] == ["Completed", "Completed"]
    told = [x.notice for x in world.audit.letters if x.notice.rollout_id.startswith("digest:#llm:")]
    assert [(n.channel, n.standing) for n in told] == [("#llm", "1 under way")]
    [plan] = [e.event.plan for e in world.audit.rows[next(iter(world.audit.rows))] if e.event.kind == "opened"]
    assert plan.kept == {DIGEST_AT: f"{at:%H:%M}"}
