"""The commands that check: lint, tick, migrate, doctor."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from controller import describe
from controller.cli.output import Output, console, errors, print_object, print_rows
from controller.cli.rollouts import opened, resolve
from controller.core.notice import standing
from controller.settings import Settings, SettingsError, load


def lint(file: Path, *, output: Output = "table") -> int:
    """
    Check a rollout.yaml or a people.yaml; every problem with file, line and column. Needs no service.

    Args:
        file: The rollout.yaml or people.yaml; its `kind` says which.
    """
    from controller.codec import plan_digest
    from controller.people import PeopleSpec
    from controller.spec import RolloutSpec
    from specfile import SpecError, load

    try:
        written = load(file, name=str(file))
        if written.data.get("kind") == "People":
            people = written.validate(PeopleSpec)
            found = {"people": len(people.people), "groups": len(people.groups)}
            if output != "table":
                print_object({"file": str(file), "ok": True, **found}, output)
            else:
                console.print(f"{file}: ok, {found['people']} people in {found['groups']} groups", soft_wrap=True, markup=False)
            return 0
        spec = written.validate(RolloutSpec)
    except SpecError as exc:
        if output != "table":
            problems = [asdict(p) for p in exc.problems]
            print_object({"file": str(file), "ok": False, "problems": problems}, output)
        else:
            errors.print(str(exc), soft_wrap=True, markup=False)
        return 1
    plan, kept = spec.to_plan(), sorted(spec.kept_for_later())
    if output != "table":
        print_object({"file": str(file), "ok": True, "plan_digest": plan_digest(plan), "kept_for_later": kept}, output)
        return 0
    steps = " > ".join(f"{p.name} {p.weight / 1000:g}%" for p in plan.phases)
    console.print(f"{file}: ok, {len(plan.gates)} gates, {steps}", soft_wrap=True, markup=False)
    for part in kept:
        errors.print(f"note: {part} is valid and kept, but this release does not act on it yet", soft_wrap=True)
    return 0


def tick(
    rollout_id: Annotated[str | None, Parameter(help="One rollout; default: all active ones")] = None,
    *,
    force: Annotated[bool, Parameter(help="Check although no check is due")] = False,
    dry_run: Annotated[bool, Parameter(help="Print the decision without committing it")] = False,
    output: Output = "table",
) -> int:
    """One gate check, without Prefect: what the schedule does every quarter of an hour."""
    from controller.sweep import gates_checked, sweep
    from controller.tick import tick as look

    rows: list[dict[str, Any]] = []
    with opened() as (controller, _):
        ports = controller.ports
        only = (resolve(ports, rollout_id),) if rollout_id is not None else ()
        if dry_run:
            for name in only or ports.index.active():
                seen = look(name, ports, ports.audit.now(), may_raise=True, force=True, dry_run=True)
                rows.append(_row(name, "dry_run", seen))
        else:
            for swept in sweep(ports, may_raise=True, only=only, force=force):
                outcome = swept.tick.outcome.value if swept.tick is not None else "failed"
                rows.append(_row(swept.rollout_id, outcome, swept.tick, swept.error))
            failed = {r["rollout_id"] for r in rows if r["outcome"] == "failed"}
            gates_checked(ports, [r["rollout_id"] for r in rows if r["rollout_id"] not in failed], sorted(failed))
    print_rows(rows, ("rollout_id", "outcome", "decision", "standing", "text"), output)
    for row in rows if output == "table" else ():
        for said in row["drills"]:
            errors.print(f"{row['rollout_id']}: {said}", soft_wrap=True, markup=False)
    return 1 if any(r["outcome"] == "failed" for r in rows) else 0


def _row(rollout_id: str, outcome: str, seen: Any, error: str = "") -> dict[str, Any]:
    decision = None if seen is None else seen.decision
    return {
        "rollout_id": rollout_id,
        "outcome": outcome,
        "decision": None if decision is None else decision.kind,
        "why": None if decision is None else decision.why.value,
        "standing": None if seen is None else standing(seen.rollout),
        "text": error or (decision.text if decision is not None else ""),
        "drills": [] if seen is None else list(seen.drilled),
        "gates": [] if seen is None else [describe.gate_row(r) for r in seen.results],
    }


def migrate(*, output: Output = "table") -> int:
    """Bring the database that PENSTOCK_DATABASE_URL names, and that of PENSTOCK_FLAGS_DATABASE_URL, to this release's schema; run it as the tables' owner."""
    from controller.adapters.postgres import migrate as schema

    settings = load()
    if settings.database_url is None:
        raise SettingsError("no database: set PENSTOCK_DATABASE_URL to the address of the tables' owner")
    applied = schema.upgrade(settings.database_url)
    flags = None if settings.flags_database_url is None else schema.upgrade(settings.flags_database_url)
    if output != "table":
        done = {"applied": applied, "current": schema.current(settings.database_url)}
        print_object(done if flags is None else {**done, "flags_applied": flags}, output)
    else:
        console.print(f"applied {', '.join(applied)}" if applied else "nothing to do", soft_wrap=True)
        if flags is not None:
            console.print("flag store: " + (f"applied {', '.join(flags)}" if flags else "nothing to do"), soft_wrap=True)
    return 0


def doctor(file: Path | None = None, *, output: Output = "table") -> int:
    """
    Try every connection and say what is wrong and where; exit code 1 if anything that is needed does not answer.

    Args:
        file: A rollout.yaml whose metrics must be there too: what its gates need and Prometheus does not have.
    """
    settings = load()
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("database", _database),
        ("prometheus", _prometheus),
        ("prefect", _prefect),
        ("flags", _flags),
        ("guard", _guard),
        ("slack", _slack),
    ]
    if file is not None:
        checks.append(("metrics", lambda found: _metrics(found, file)))
    rows = []
    for name, check in checks:
        try:
            rows.append({"what": name, "ok": True, "seen": check(settings)})
        except Exception as exc:  # whatever a connection does, doctor says it and goes on with the next
            rows.append({"what": name, "ok": False, "seen": str(exc).strip() or type(exc).__name__})
    if output == "table":
        rows = [{**r, "ok": "ok" if r["ok"] else "FAILED"} for r in rows]
    print_rows(rows, ("what", "ok", "seen"), output)
    return 0 if all(r["ok"] in (True, "ok") for r in rows) else 1


def _database(settings: Settings) -> str:
    from controller.adapters.postgres import open_engine
    from controller.adapters.postgres.tables import SCHEMA_REVISION

    if settings.database_url is None:
        raise SettingsError("not named and not running: `penstock up` starts one, PENSTOCK_DATABASE_URL names one")
    open_engine(settings.database_url).dispose()
    if settings.flags_database_url is not None:
        open_engine(settings.flags_database_url).dispose()
        return f"schema {SCHEMA_REVISION}, flag store too"
    return f"schema {SCHEMA_REVISION}"


def _prometheus(settings: Settings) -> str:
    from controller.adapters.prometheus import PrometheusSource

    if settings.prometheus_url is None:
        raise SettingsError("not named and not running: `penstock up` starts one, PENSTOCK_PROMETHEUS_URL names one")
    return f"{PrometheusSource(settings.prometheus_url, timeout_s=5).probe()} at {settings.prometheus_url}"


def _metrics(settings: Settings, file: Path) -> str:
    from datetime import UTC, datetime

    from controller.adapters.prometheus import PrometheusSource
    from controller.spec import read

    plan = read(file).to_plan()
    if settings.prometheus_url is None:
        raise SettingsError("no Prometheus to ask")
    source = PrometheusSource(settings.prometheus_url, timeout_s=5, scrape_interval=settings.scrape_interval)
    if missing := source.missing(plan, datetime.now(UTC)):
        raise SettingsError("; ".join(f"{', '.join(m.gates)}: {m.text}" if m.gates else m.text for m in missing))
    return f"all that the gates of {file} need (profile {plan.profile})"


def _prefect(settings: Settings) -> str:
    import httpx

    if settings.prefect_api_url is None:
        raise SettingsError("not named and not running: `penstock up` starts one, PREFECT_API_URL names one")
    try:
        answer = httpx.get(f"{settings.prefect_api_url}/health", timeout=5)
    except httpx.HTTPError as exc:
        raise SettingsError(f"{settings.prefect_api_url} does not answer: {exc}") from exc
    if answer.status_code != 200:
        raise SettingsError(f"{settings.prefect_api_url}/health answered {answer.status_code}")
    return f"healthy at {settings.prefect_api_url}"


def _flags(settings: Settings) -> str:
    import httpx

    url = f"http://{settings.listen}/readyz/flags"
    try:
        answer = httpx.get(url, timeout=5)
    except httpx.HTTPError as exc:
        raise SettingsError(f"`penstock serve` does not answer at {url}: {exc}") from exc
    if answer.status_code != 200:
        raise SettingsError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
    return f"served at http://{settings.listen}/flags/v1"


def _guard(settings: Settings) -> str:
    from controller.console.health import beating
    from controller.wiring import NO_DATABASE, open_watch

    with open_watch(settings) as watch:
        if watch is None:
            raise SettingsError(NO_DATABASE)
        return beating(watch.guard_age_s)()


def _slack(settings: Settings) -> str:
    if not settings.slack_token:
        return "not configured: notices go to the log (set PENSTOCK_SLACK_TOKEN)"
    from controller.adapters.postgres import PostgresOutbox, open_engine
    from controller.adapters.slack import check_socket, check_token

    seen = check_token(settings.slack_token, base_url=settings.slack_api_url)
    if settings.slack_app_token:
        check_socket(settings.slack_app_token, base_url=settings.slack_api_url)
        seen += ", buttons over Socket Mode"
    elif settings.slack_signing_secret:
        seen += ", buttons over signed HTTP"
    if settings.slack_clicks and settings.people_file is None:
        raise SettingsError(f"{seen}, but no click counts without a people file: set PENSTOCK_PEOPLE_FILE")
    if settings.database_url is None:
        return seen
    engine = open_engine(settings.database_url)
    try:
        count, reason = PostgresOutbox(engine).stuck()
    finally:
        engine.dispose()
    if count:
        # A token that is good says nothing of the channels.
        raise SettingsError(f"{seen}, but {count} notice{'s' if count > 1 else ''} could not be delivered: {reason}")
    return seen
