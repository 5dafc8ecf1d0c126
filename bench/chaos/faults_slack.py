"""
Slack in every bad mood: limits, errors, silence, resets behind an accepted message, a token or a channel that is gone.

Its one rule: the gates must not notice. Letters wait, arrive when Slack is well again, and no person sees one twice; what a person must repair is
said where people look when Slack is silent: in the log and by `penstock doctor`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from random import Random

from bench.chaos.fault import Trial, fault
from bench.chaos.faults_prometheus import CANARY, HALF
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from bench.slack_limits import Fault as SlackFault
from bench.slack_limits import FaultKind

QUICK = frozenset({"429 with Retry-After", "500", "no answer", "accepted, then reset", "invalid_auth", "channel_not_found"})
"""The faults of a quick run."""

ALWAYS = 100_000
GATES_S = 20.0
"""Within that time a rollout goes from nothing to 50 % and back to 0, whatever Slack does."""

DRAINED_S = 60.0
"""A letter that failed is tried again after at most a few seconds at first; the loop leaves Slack alone for ten after three failures."""


def _slack(name: str, *faults: SlackFault, told: str = "", until_healed: bool = True) -> None:
    """
    Register a fault.

    Args:
        name: Its name.
        faults: Scripted when the rollout has started.
        told: What log and doctor must say meanwhile; "" for nothing, where Slack will repair itself.
        until_healed: They go on until the trial ends them; else they are used up.
    """

    @fault(f"Slack: {name}", group="slack", quick=name in QUICK, full=25, recover_s_max=DRAINED_S)
    def run(world: World, rng: Random) -> Trial:
        mailer, worker = world.controller(), world.controller()
        mailer.call("mail")
        if rng.random() < 0.5:
            world.slack.faults.faults.extend(faults)
        begun_s = time.monotonic()
        rollout_id = world.start(worker)
        world.until(lambda: bool(world.look(worker, rollout_id, may_raise=True)) and world.weight() >= CANARY)
        if not world.slack.faults.faults:
            world.slack.faults.faults.extend(faults)
        found = []
        raised = world.until(lambda: bool(world.look(worker, rollout_id, may_raise=True)) and world.weight() >= HALF, GATES_S)
        world.turn(Truth.ALARM, rollout_id)
        world.look(worker, rollout_id, may_raise=False)
        if not raised or world.weight() != 0 or time.monotonic() - begun_s > 2 * GATES_S:
            found.append(broken("gates_unaffected", f"at {world.weight()} after {time.monotonic() - begun_s:.1f} s"))
        if told:
            found += [broken("told_elsewhere", text) for text in _untold(world, told)]
        if until_healed:
            world.slack.faults.faults.clear()
        if rng.random() < 0.3:
            world.restarted()
            world.lapse()
            world.controller().call("mail")
        healed_s = time.monotonic()
        drained = world.until(world.settled, 2 * DRAINED_S)
        trial = world.finish(time.monotonic() - healed_s if drained else float("inf"))
        return Trial(violations=(*found, *trial.violations), recover_s=trial.recover_s)


def _untold(world: World, what: str) -> Sequence[str]:
    """Where it ought to be said and is not."""
    log = world.folder / "controllers.log"
    missing = [] if world.until(lambda: what in log.read_text(), 15) else [f"{what!r} is not in the log"]
    said = doctor(world)
    if said["ok"] or what not in str(said["seen"]):
        missing.append(f"`penstock doctor` says {said}")
    return missing


def doctor(world: World) -> dict[str, object]:
    """What `penstock doctor` says of Slack."""
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli.app", "doctor", "-o", "json"],
        env={**os.environ, **world.environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    rows: list[dict[str, object]] = [json.loads(line) for line in done.stdout.splitlines()]
    return next(r for r in rows if r["what"] == "slack")


def _every(kind: FaultKind, count: int = ALWAYS, method: str = "*", **more: object) -> SlackFault:
    return SlackFault(method=method, kind=kind, count=count, **more)  # type: ignore[arg-type]  # its own fields


_slack("429 with Retry-After", _every(FaultKind.RATE_LIMITED, retry_after_s=2))
_slack("500", _every(FaultKind.STATUS, status=500))
_slack("reset", _every(FaultKind.RESET))
_slack("no answer", _every(FaultKind.TIMEOUT, count=2, hang_s=15.0), until_healed=False)
_slack(
    "accepted, then no answer",
    _every(FaultKind.TIMEOUT_AFTER_ACCEPT, count=1, method="chat.postMessage", hang_s=15.0),
    until_healed=False,
)
_slack("accepted, then reset", _every(FaultKind.RESET_AFTER_ACCEPT, count=3, method="chat.postMessage"), until_healed=False)
_slack("slow", _every(FaultKind.SLOW, hang_s=0.5))
_slack("invalid_auth", _every(FaultKind.ERROR, error="invalid_auth"), told="invalid_auth")
_slack("token_revoked", _every(FaultKind.ERROR, error="token_revoked"), told="token_revoked")
_slack(
    "channel_not_found", _every(FaultKind.ERROR, method="chat.postMessage", error="channel_not_found"), told="channel_not_found"
)
_slack("a word that it never said before", _every(FaultKind.ERROR, error="something_new"), told="something_new")
