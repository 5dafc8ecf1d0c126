"""
`penstock init`: a first rollout.yaml, from what Prometheus has of today's traffic.

Its one rule: it writes nothing that `lint` would refuse, and over nothing that is there.
"""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from controller.cli.output import Output, console, errors, print_object
from controller.cli.planning import EXIT_USAGE, Usage
from controller.settings import load

if TYPE_CHECKING:
    from controller.adapters.prometheus.discover import Found

WINDOW = timedelta(hours=6)
SHOWN = 12


def init(
    file: Path = Path("rollout.yaml"),
    *,
    candidate: str | None = None,
    baseline: str | None = None,
    flag: str | None = None,
    environment: str | None = None,
    profile: str | None = None,
    name: str | None = None,
    owner: str = "",
    force: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
) -> int:
    """
    Write a first rollout.yaml: what there is of today's traffic in Prometheus, limits that the baseline keeps with headroom, phases that last
    as long as a proof takes.

    What is not given is asked for on a terminal; elsewhere what cannot be told from the traffic must be given.

    Args:
        file: Where it is written.
        candidate: The new model.
        baseline: The model that answers today; default: the one with the most traffic.
        flag: The flag to move; default: the one with the most traffic.
        environment: Its environment; default: the one with the most traffic.
        profile: By whose names requests are counted: router, otel-genai, litellm or envoy-ai-gateway; default: whichever are there.
        name: Of the rollout; default: made of flag and candidate.
        owner: Team that answers for it.
        force: Write over a file that is there.
    """
    from controller.forecast.baseline import NothingMeasured
    from controller.ports import PortError
    from specfile import SpecError

    try:
        if file.exists() and not force:
            raise Usage(f"{file} is there; --force writes over it")
        found = _choose(_discovered(profile), baseline, flag, environment)
        to = candidate or _ask(f"The new model, in place of {found.model}")
        if not to:
            raise Usage("which model is to be rolled out? Write --candidate NAME")
        text, told = _made(found, to, flag, environment, name, owner)
    except Usage as exc:
        errors.print(f"penstock: {exc}", soft_wrap=True, markup=False)
        return EXIT_USAGE
    except (NothingMeasured, PortError, SpecError) as exc:
        errors.print(f"penstock: {exc}", soft_wrap=True, markup=False)
        return 1
    try:
        with file.open("w" if force else "x", encoding="utf-8") as written:
            written.write(text)
    except OSError as exc:
        errors.print(f"penstock: {file}: {exc.strerror}", soft_wrap=True, markup=False)
        return 1
    if output != "table":
        print_object({"file": str(file), **told}, output)
        return 0
    console.print(f"written: {file}", soft_wrap=True, markup=False)
    for line in told["said"]:
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"next: penstock plan {file}; penstock doctor {file}; penstock start {file}", soft_wrap=True, markup=False)
    return 0


def _discovered(profile: str | None) -> "tuple[Found, ...]":
    from controller.adapters.prometheus.client import PrometheusClient
    from controller.adapters.prometheus.discover import PROFILES, discover
    from controller.wiring import NO_PROMETHEUS

    if profile is not None and profile not in PROFILES:
        raise Usage(f"--profile {profile}: write {', '.join(PROFILES)}")
    settings = load()
    if settings.prometheus_url is None:
        raise Usage(f"{NO_PROMETHEUS}; an example to begin with is docs/examples/rollout.yaml")
    client = PrometheusClient(settings.prometheus_url, timeout_s=settings.prometheus_timeout.total_seconds())
    found = discover(client, datetime.now(UTC), WINDOW, PROFILES if profile is None else (profile,))
    if not found:
        looked = profile or ", ".join(PROFILES)
        raise Usage(
            f"Prometheus has no requests of the last {WINDOW.total_seconds() / 3600:g} hours by the names of {looked}; "
            "is it scraping? Names of your own are for the profile custom (docs/reference/metric-profiles.md)"
        )
    return found


def _choose(found: "Sequence[Found]", baseline: str | None, flag: str | None, environment: str | None) -> "Found":
    # Only where the router counts nothing are there no flags to choose from.
    nameless = None if any(f.flag for f in found) else ""
    fits = [
        f
        for f in found
        if (baseline is None or f.model == baseline)
        and (environment is None or f.environment in (environment, nameless))
        and (flag is None or f.flag in (flag, nameless))
    ]
    if not fits:
        seen = "; ".join(_said(f) for f in found[:SHOWN])
        raise Usage(f"there is no such traffic; seen were {seen}")
    if len(fits) == 1 or not sys.stdin.isatty():
        return fits[0]
    for number, each in enumerate(fits[:SHOWN], 1):
        errors.print(f"{number:3}  {_said(each)}", soft_wrap=True, markup=False)
    picked = _ask(f"Which of them answers today (1 to {min(len(fits), SHOWN)})", "1")
    if not picked.isdigit() or not 1 <= int(picked) <= min(len(fits), SHOWN):
        raise Usage(f"{picked!r} is none of them")
    return fits[int(picked) - 1]


def _said(found: "Found") -> str:
    flag = f" on flag {found.flag} in {found.environment}" if found.flag else ""
    return f"{found.model}{flag}, {found.rps:.3g} requests/s ({found.profile})"


def _ask(question: str, default: str = "") -> str:
    """ "" off a terminal."""
    if not sys.stdin.isatty():
        return default
    from rich.prompt import Prompt

    return Prompt.ask(question, console=errors, default=default or None) or ""


def _made(
    found: "Found", candidate: str, flag: str | None, environment: str | None, name: str | None, owner: str
) -> tuple[str, dict[str, Any]]:
    """The file's text, and what was seen on the way."""
    from controller.adapters.prometheus.profile import load_profile
    from controller.cli.plans import as_yaml
    from controller.forecast.baseline import read
    from controller.forecast.outlook import outlook
    from controller.forecast.proposal import baked, fitted, skeleton
    from controller.spec import RolloutSpec
    from controller.wiring import make_metrics
    from specfile import parse_text

    now, key = datetime.now(UTC), flag or found.flag or _slug(f"{found.model}-traffic")
    first = skeleton(
        name=name or _slug(f"{key}-{candidate}"),
        environment=environment or found.environment or "production",
        flag=key,
        baseline=found.model,
        candidate=candidate,
        profile=found.profile,
        owner=owner,
        indicators=list(load_profile(found.profile).indicators),
    )
    probe = parse_text(RolloutSpec, as_yaml(first), "<proposal>").to_plan()
    baseline = read(probe, make_metrics(load()), now)
    data, seen = fitted(first, probe, baseline)
    plan = parse_text(RolloutSpec, as_yaml(data), "<proposal>").to_plan()
    data = baked(data, outlook(plan, baseline))
    plan = parse_text(RolloutSpec, as_yaml(data), "<proposal>").to_plan()
    outcome = outlook(plan, baseline)
    traffic = f"{baseline.rps:.3g} requests/s of {found.model}, measured over the {WINDOW.total_seconds() / 3600:g} hours before {now:%Y-%m-%d %H:%M} UTC"
    limits = [f"{gate}: {today}" for gate, today in seen.items()]
    said = [traffic, *limits]
    if outcome.finish is not None:
        days = outcome.finish[0].total_seconds() / 86_400
        said.append(f"a candidate like the baseline is promoted after {days:.2g} days, plus the time that people take to approve")
    said += [f"{p.name} is never left: {'; or '.join(p.remedies)}" for p in outcome.phases if p.lasts is None]
    said += [f"cannot work: {p.about}: {p.text}" for p in outcome.problems if p.stops]
    comments = {
        "apiVersion": f"Made by penstock init from {traffic}.",
        "flag": "The flag that this rollout moves.",
        "slos": "Limits that the baseline keeps with headroom; today: " + ", ".join(limits) + ".",
        "comparisons": "The candidate beside the baseline, at the same time.",
        "phases": "Each lasts at least its bake and until its gates are proven; groups are those of people.yaml.",
    }
    text = as_yaml(data, {k: v for k, v in comments.items() if k in data})
    parse_text(RolloutSpec, text, "<proposal>").to_plan()
    told = {"said": said, "rps": baseline.rps, "verdict": outcome.verdict.value, "profile": found.profile, "flag": key}
    return text, told


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63] or "rollout"
