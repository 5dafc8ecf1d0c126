"""The audit-head flow: published once, on a schedule, and failed when the log lost what was published."""

import json
from dataclasses import replace
from pathlib import Path

from flows.registry import DEPLOYMENTS
from tests.flows.conftest import World


def test_the_head_is_published_each_hour_and_once(world: World, tmp_path: Path) -> None:
    assert [d.cron for d in DEPLOYMENTS if d.name == "audit-head"] == ["7 * * * *"]
    heads = tmp_path / "heads.jsonl"
    settings = replace(world.controller.settings, audit_heads_file=heads)
    world.controller = replace(world.controller, settings=settings)
    assert world.run("audit-head").state_name == "Empty"
    world.start()
    assert [world.run("audit-head").state_name for _ in range(2)] == ["Published", "Unchanged"]
    (published,) = map(json.loads, heads.read_text().splitlines())
    # Opened, advanced, confirmed.
    assert (published["id"], published["signature"]) == (3, "")
    assert [x.notice.title for x in world.audit.letters if x.notice.rollout_id == "audit:head"] == ["Audit log"]

    heads.write_text(json.dumps(published | {"id": 99}) + "\n")
    broken = world.run("audit-head")
    assert (broken.state_name, broken.state_type.value if broken.state_type else "") == ("Broken", "FAILED")
