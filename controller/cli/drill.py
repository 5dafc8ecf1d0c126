"""Failures on purpose, for no user: `drill fallback` exercises what answers when the candidate does not."""

from dataclasses import replace
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from controller.cli.output import Output, errors, print_json, print_rows
from controller.cli.rollouts import Id, log_opened, resolve
from controller.commands import CommandRefused
from controller.core.notice import standing
from controller.core.plan import Plan
from controller.core.rollout import replay
from controller.ports import DrillRefused, Drills, Unavailable
from controller.settings import load
from controller.wiring import make_drills

drill = App(name="drill", help="Let something fail on purpose, for no user: fallback.")

_NOT_HELD = ("refused", "unreachable")
_COLUMNS = ("drill", "outcome", "answered_by", "in_place_of", "took_s", "text")


@drill.command
def fallback(
    rollout_id: Id,
    *,
    router: Annotated[str | None, Parameter(help="The router's address; default: PENSTOCK_ROUTER_URL")] = None,
    repeat: Annotated[int, Parameter(help="So many, one after the other", validator=Number(gte=1))] = 1,
    stream: Annotated[bool, Parameter(negative="", help="Ask for a stream")] = False,
    route: Annotated[str, Parameter(help="Of several routes that have the flag; default: the first")] = "",
    output: Output = "table",
) -> int:
    """
    Let a rollout's candidate fail once, for a request that no user made, and see the fallback answer.

    The router's token comes from PENSTOCK_DRILL_TOKEN. Exit code 1 unless the fallback answered every time.
    """
    settings = load()
    drills = make_drills(replace(settings, router_url=router or settings.router_url))
    with log_opened() as ports:
        rollout = replay(ports.audit.entries(resolve(ports, rollout_id)))
    if rollout.ended:
        raise CommandRefused(f"{rollout.id} is over ({standing(rollout)}): a drill counts for the rollout that has the flag")
    rows: list[dict[str, Any]] = []
    for number in range(1, repeat + 1):
        rows.append({"rollout_id": rollout.id, "drill": number, **_once(drills, rollout.plan, route, stream)})
        if output in ("json", "jsonl"):
            print_json(rows[-1])
        if rows[-1]["outcome"] in _NOT_HELD:
            break  # the next one would end for the same reason
    if output in ("table", "csv"):
        print_rows(rows, _COLUMNS, output)
    if output == "table" and rows[0]["outcome"] not in _NOT_HELD:
        errors.print("counted by the router; gates see it once Prometheus has scraped it", soft_wrap=True)
    return 0 if all(r["outcome"] == "answered" for r in rows) else 1


def _once(drills: Drills, plan: Plan, route: str, stream: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"answered_by": None, "in_place_of": plan.candidate.model, "took_s": None}
    try:
        seen = drills.fallback(plan.environment, plan.flag, route=route, streaming=stream)
    except (DrillRefused, Unavailable) as exc:
        return row | {"outcome": "refused" if isinstance(exc, DrillRefused) else "unreachable", "text": str(exc)}
    outcome = "answered" if seen.answered_by else "unanswered"
    return row | {
        "outcome": outcome,
        "answered_by": seen.answered_by or None,
        "took_s": round(seen.took.total_seconds(), 3),
        "text": seen.text,
    }
