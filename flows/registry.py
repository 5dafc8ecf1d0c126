"""
The deployments, as one list.

`serve.py` and `local.py` register it and `deployments/prefect.yaml` is generated from it; a test holds the file against it. Its one
rule: no concurrency limits. Overlapping, late and duplicate gate checks are harmless by themselves, and Prefect's limits outlive the
workers that they count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GATE_CHECK = "gate-check"
GATE_CHECK_CRON = "*/15 * * * *"
AUDIT_HEAD_CRON = "7 * * * *"
AUDIT_VERIFY_CRON = "37 3 * * *"
DIGEST_CRON = "*/15 * * * *"
"""Every time zone's quarters of an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """
    One deployment.

    Args:
        name: Of the deployment and of its flow: ``gate-check/gate-check``.
        entrypoint: Module path of the flow. Never a file path, which would put the folder `flows/` first on `sys.path`.
        description: What people read above the form, in Markdown.
        parameters: Set for runs of the schedule.
        cron: When it runs by itself, in UTC; "" for never.
        slug: Identity of the schedule. Without it each registration makes a new schedule and runs double.
        tags: Of the deployment and all its runs.
    """

    name: str
    entrypoint: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cron: str = ""
    slug: str = ""
    tags: tuple[str, ...] = ("penstock",)


DEPLOYMENTS = (
    Deployed(
        name="rollout",
        entrypoint="flows.rollout.rollout",
        description="Start a rollout. Its run stays *Paused* under the name of the phase while the rollout lasts; cancel the run to abort it.",
    ),
    Deployed(
        name=GATE_CHECK,
        entrypoint="flows.gate_check.gate_check",
        description="Look at every rollout that is due, each quarter of an hour. Run it by hand with a rollout's id and *force* to look now.",
        cron=GATE_CHECK_CRON,
        slug="gate-check",
    ),
    Deployed(
        name="rollback",
        entrypoint="flows.rollback.rollback",
        description="Bring the candidate of a rollout back to 0% **now**.",
    ),
    Deployed(
        name="approve",
        entrypoint="flows.approve.approve",
        description="Say yes to the phase that a rollout waits to enter. The next gate check judges once more and advances.",
    ),
    Deployed(
        name="audit-head",
        entrypoint="flows.audit_head.audit_head",
        description="Publish the head of the audit log each hour, so that nobody can cut or rewrite it unseen.",
        cron=AUDIT_HEAD_CRON,
        slug="audit-head",
    ),
    Deployed(
        name="audit-verify",
        entrypoint="flows.audit_verify.audit_verify",
        description="Check the whole audit log each night: the chain, the raw answers, and every head that was published.",
        cron=AUDIT_VERIFY_CRON,
        slug="audit-verify",
    ),
    Deployed(
        name="digest",
        entrypoint="flows.digest.digest",
        description="Post the daily digests that are due, each channel's at the time that its plans ask for (`notify.slack.digest`).",
        cron=DIGEST_CRON,
        slug="digest",
    ),
)
