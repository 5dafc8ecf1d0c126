"""
Where objects are built: settings in, a controller with all its ports out.

Its one rule: nothing else builds an adapter. Everything is opened here and closed here.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from controller import crash
from controller.commands import CommandRefused
from controller.core.measurement import Measurement, QueryFailed
from controller.core.notice import Notice
from controller.core.people import Caller, NotAllowed, claimed
from controller.core.plan import Gate, Plan
from controller.core.rollout import LogError
from controller.core.traffic import Question, TrafficRead
from controller.people import PeopleFile
from controller.ports import Drills, MetricSource, Notifier, Outbox, Planned, PortError, Ports, RequestLog, Scope, Sessions
from controller.publish import Published, publish
from controller.settings import Settings, SettingsError
from controller.standing import standing
from specfile import SpecError

if TYPE_CHECKING:
    from controller.adapters.oidc import OidcProvider
    from controller.adapters.postgres import PostgresAudit, PostgresFlags, PostgresFlagSource
    from controller.adapters.postgres.census import Census
    from controller.core.chain import ChainReport

SPEND_TIMEOUT_S = 3.0
"""Somebody waits for the page."""

SPEND_PAUSE_S = 60.0
"""So long messages go without what was spent, once nobody said."""

NO_DATABASE = "no database: start one with `penstock up`, or set PENSTOCK_DATABASE_URL"
NO_FLAGS = "no flag store: start one with `penstock up`, or set PENSTOCK_FLAGS_DATABASE_URL or PENSTOCK_DATABASE_URL"
NO_PROMETHEUS = "no Prometheus: start one with `penstock up`, or set PENSTOCK_PROMETHEUS_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """A controller that is ready to work: the ports of `tick`, and the way to people."""

    settings: Settings
    ports: Ports
    outbox: Outbox
    notifier: Notifier


class NoMetrics:
    """The metric source where none is named: nothing can be measured, so nothing can pass."""

    def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
        return tuple(QueryFailed(reason=NO_PROMETHEUS) for _ in gates)

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        return TrafficRead(traffic=None, failure=NO_PROMETHEUS)

    def together(self, planned: Sequence[Planned]) -> tuple["NoMetrics", int]:
        return self, len(planned)


@contextmanager
def open_controller(settings: Settings, *, reading: bool = False) -> Iterator[Controller]:
    """
    Connect to everything that the settings name.

    Args:
        settings: Where everything is.
        reading: The log is only read: a Prometheus need not be named.

    Raises:
        SettingsError: no database or no Prometheus is named and none is running.
        Unavailable: the database cannot be reached, or is at another schema revision.
    """
    from controller import logs
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.log import LogNotifier
    from controller.adapters.postgres import PostgresAudit, PostgresFlags, PostgresHeartbeats, open_engine

    if settings.database_url is None:
        raise SettingsError(NO_DATABASE)
    if settings.prometheus_url is None and not reading:
        raise SettingsError(NO_PROMETHEUS)
    _arm(settings.crash_at)
    logs.configure()
    with ExitStack() as opened:
        engine = open_engine(settings.database_url)
        opened.callback(engine.dispose)
        flags_engine = engine
        if settings.flags_database_url is not None:
            flags_engine = open_engine(settings.flags_database_url)
            opened.callback(flags_engine.dispose)
        audit = PostgresAudit(engine, EvidenceFiles(settings.evidence_folder))
        source = NoMetrics() if settings.prometheus_url is None else make_metrics(settings)
        ports = Ports(
            audit=audit,
            index=audit,
            flags=PostgresFlags(flags_engine),
            metrics=source,
            drills=_drills_if_possible(settings),
            heartbeats=PostgresHeartbeats(engine),
        )
        notifier: Notifier = LogNotifier()
        if settings.slack_token:
            from controller.adapters.slack import PostgresThreads, SlackNotifier

            notifier = SlackNotifier(
                settings.slack_token,
                settings.slack_channel,
                PostgresThreads(engine),
                base_url=settings.slack_api_url,
                page=settings.public_url,
                clickable=settings.slack_clicks,
                whom=_Whom(open_people(settings)),
                spent=_Spent(settings, ports),
            )
        yield Controller(settings=settings, ports=ports, outbox=audit, notifier=notifier)


class _Whom:
    """Whom a notice calls in Slack. No people file, or one that cannot be used, calls nobody: the news must go out all the same."""

    def __init__(self, file: PeopleFile | None) -> None:
        self._file = file

    def __call__(self, notice: Notice) -> str:
        from controller.adapters.slack import mentions

        if self._file is None or not (notice.on_call or notice.asks):
            return ""
        try:
            return mentions(notice, self._file.people())
        except SpecError:
            return ""


class _Spent:
    """What a rollout has cost so far, for its message. Whoever does not answer is left alone for a while: news must not wait for it."""

    def __init__(self, settings: Settings, ports: Ports) -> None:
        self._settings, self._ports = settings, ports
        self._quiet_until_s = -math.inf

    def __call__(self, notice: Notice) -> str:
        if self._settings.prometheus_url is None or time.monotonic() < self._quiet_until_s:
            return ""
        try:
            rollout = standing(notice.rollout_id, self._ports.audit, self._ports.standings)
            until = rollout.ended_at or self._ports.audit.now()
        except (PortError, LogError):
            return ""
        try:
            by_arm = spent_on(self._settings, rollout.plan, rollout.opened_at, until)
        except (PortError, SettingsError):
            self._quiet_until_s = time.monotonic() + SPEND_PAUSE_S
            return ""
        if by_arm is None:
            return ""
        ours = by_arm.get("candidate", 0.0) + by_arm.get("shadow", 0.0)
        return f"${ours:,.2f} by the candidate, ${by_arm.get('baseline', 0.0):,.2f} by the baseline"


def _arm(crash_at: str) -> None:
    try:
        crash.arm(crash_at)
    except ValueError as exc:
        raise SettingsError(f"PENSTOCK_CRASH_AT: {exc}") from exc


def open_people(settings: Settings) -> PeopleFile | None:
    """The people file that the settings name, not read yet; None where none is named."""
    return None if settings.people_file is None else PeopleFile(settings.people_file)


def caller_of(settings: Settings, name: str, groups: tuple[str, ...] = (), *, lowering: bool = False) -> Caller:
    """
    Who acts through a door that asks for no proof: the command line, Prefect's forms.

    Args:
        settings: Where the people file is.
        name: Who the caller says to be.
        groups: Which groups the caller claims; heeded only without a people file.
        lowering: What is asked for can only lower. Then neither a stranger nor a file that cannot be read stands in the way: the name
            is a claim here anyway, and seconds count.

    Raises:
        NotAllowed: the people file does not know the name.
        SpecError: the people file cannot be used.
    """
    try:
        file = open_people(settings)
        return claimed(name, groups) if file is None else file.people().called(name)
    except (NotAllowed, SpecError):
        if not lowering:
            raise
        return claimed(name)


def make_metrics(settings: Settings) -> MetricSource:
    """
    The metric source alone: for commands that only look at traffic.

    Raises:
        SettingsError: no Prometheus is named and none is running, or its address cannot be used.
    """
    from controller.adapters.prometheus import PrometheusSource

    if settings.prometheus_url is None:
        raise SettingsError(NO_PROMETHEUS)
    try:
        timeout_s = settings.prometheus_timeout.total_seconds()
        return PrometheusSource(settings.prometheus_url, timeout_s=timeout_s, scrape_interval=settings.scrape_interval)
    except ValueError as exc:
        raise SettingsError(f"PENSTOCK_PROMETHEUS_URL: {exc}") from exc


def spent_on(settings: Settings, plan: Plan, begin: datetime, end: datetime) -> Mapping[str, float] | None:
    """
    US dollars by arm between two times; None where nobody counts them.

    Raises:
        SettingsError: no Prometheus is named.
        Unavailable: it did not say.
    """
    from controller.adapters.prometheus.client import PrometheusClient
    from controller.adapters.prometheus.spend import spent

    if settings.prometheus_url is None:
        raise SettingsError(NO_PROMETHEUS)
    try:
        client = PrometheusClient(settings.prometheus_url, timeout_s=SPEND_TIMEOUT_S)
    except ValueError as exc:
        raise SettingsError(f"PENSTOCK_PROMETHEUS_URL: {exc}") from exc
    return spent(client, plan, begin, end)


def check_models(settings: Settings, plan: Plan) -> None:
    """
    Refuse a plan whose models the router does not know; without a router's address there is nobody to ask.

    Raises:
        CommandRefused: a model is unknown; names those that are known.
        Unavailable: the router that the settings name does not answer.
    """
    if settings.router_url is None:
        return
    from controller.adapters.router import known_models

    known = known_models(settings.router_url)
    for side, variant in (("baseline", plan.baseline), ("candidate", plan.candidate)):
        if variant.model not in known:
            names = ", ".join(sorted(known)) or "none"
            raise CommandRefused(
                f"{side}: the router at {settings.router_url} does not know model {variant.model!r}; it knows {names}"
            )


def _drills_if_possible(settings: Settings) -> Drills | None:
    """Nothing that is wrong with drills may keep a controller from lowering a flag."""
    try:
        return make_drills(settings)
    except SettingsError:
        return None


def make_oidc(settings: Settings) -> "OidcProvider | None":
    """
    Where people prove who they are, for the console; None where the settings name no issuer.

    Raises:
        SettingsError: it is named only in part, or without a people file to find people in.
    """
    if not settings.oidc_issuer:
        return None
    if not settings.oidc_client_id or not settings.oidc_client_secret:
        raise SettingsError("PENSTOCK_OIDC_ISSUER needs PENSTOCK_OIDC_CLIENT_ID and PENSTOCK_OIDC_CLIENT_SECRET")
    if settings.people_file is None:
        raise SettingsError("PENSTOCK_OIDC_ISSUER needs PENSTOCK_PEOPLE_FILE: it says who may do what, by e-mail")
    from controller.adapters.oidc import OidcProvider

    try:
        return OidcProvider(settings.oidc_issuer, settings.oidc_client_id, settings.oidc_client_secret)
    except ValueError as exc:
        raise SettingsError(f"PENSTOCK_OIDC_ISSUER: {exc}") from exc


def make_drills(settings: Settings) -> Drills:
    """
    The way to exercise the fallback.

    Raises:
        SettingsError: the router or the token is not named, or cannot be used.
    """
    from controller.adapters.router import RouterDrills

    if settings.router_url is None:
        raise SettingsError("no router: name one with --router or PENSTOCK_ROUTER_URL")
    if not settings.drill_token:
        raise SettingsError("no token for drills: set PENSTOCK_DRILL_TOKEN to what the router has in its drills.token_env")
    try:
        return RouterDrills(settings.router_url, settings.drill_token, api_key=settings.drill_api_key)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


def publish_head(opened: Controller) -> Published:
    """
    Publish the head of the audit log where the settings say.

    Raises:
        BadHeads: the key or the file of heads cannot be used.
        AuditUnavailable: the log cannot be read, or people not be told.
    """
    from controller.adapters.heads import HeadFile, HeadSigner

    settings = opened.settings
    signer, book = HeadSigner(settings.audit_key_file), HeadFile(settings.audit_heads_file)
    log = opened.ports.audit
    return publish(log, log.now(), book, signer, opened.outbox, settings.audit_heads_file.name)


def verify_log(settings: Settings) -> "ChainReport":
    """
    Check the whole audit log, and that it holds every head that was published.

    Raises:
        SettingsError: no database is named.
        BadHeads, AuditUnavailable: the heads or the log cannot be read; nothing is said about it then.
    """
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.heads import read_heads
    from controller.adapters.postgres import chain
    from controller.core.chain import Head

    if settings.database_url is None:
        raise SettingsError(NO_DATABASE)
    published, problems = read_heads(settings.audit_heads_file) if settings.audit_heads_file.exists() else ((), ())
    files = EvidenceFiles(settings.evidence_folder)
    found = chain.verify(settings.database_url, [Head(id=h.id, hash=h.hash) for h in published], files=files)
    return replace(found, problems=(*problems, *found.problems), problem_count=len(problems) + found.problem_count)


@contextmanager
def open_log(settings: Settings) -> Iterator["PostgresAudit"]:
    """
    Only the audit log, for who reads it.

    Raises:
        SettingsError, Unavailable: as `open_controller`.
    """
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.postgres import PostgresAudit, open_engine

    if settings.database_url is None:
        raise SettingsError(NO_DATABASE)
    engine = open_engine(settings.database_url)
    try:
        yield PostgresAudit(engine, EvidenceFiles(settings.evidence_folder))
    finally:
        engine.dispose()


@contextmanager
def open_flags(settings: Settings) -> Iterator["PostgresFlags"]:
    """
    Only the flag store: the kill switch needs nothing else to be up.

    Raises:
        SettingsError: no flag store is named and none is running.
    """
    from controller.adapters.postgres import PostgresFlags, open_engine

    if settings.flags_url is None:
        raise SettingsError(NO_FLAGS)
    # Whatever release the tables are of: a kill must not wait for a migration.
    engine = open_engine(settings.flags_url, require_schema=False)
    try:
        yield PostgresFlags(engine)
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """
    What says whether the controller is well, on connections of its own.

    Args:
        census: Numbers of the database.
        database: Says in a few words that the database is reachable and its schema right; raises PortError if not.
        guard_age_s: Seconds since a guard last beat; None for never. Raises PortError.
    """

    census: "Census"
    database: Callable[[], str]
    guard_age_s: Callable[[], float | None]


@contextmanager
def open_watch(settings: Settings) -> Iterator[Watch | None]:
    """None where no database is named. One that is down now is tried again at each question."""
    from controller.adapters.postgres import PostgresHeartbeats, check_schema, open_engine
    from controller.adapters.postgres.census import Census
    from controller.adapters.postgres.tables import SCHEMA_REVISION

    if settings.database_url is None:
        yield None
        return
    engine = open_engine(settings.database_url, require_schema=False)

    def database() -> str:
        check_schema(engine)
        return f"schema {SCHEMA_REVISION}"

    try:
        beats = PostgresHeartbeats(engine)
        yield Watch(census=Census(engine), database=database, guard_age_s=lambda: beats.age_s("guard"))
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the HTTP API and the web console work on; `flags` is the store of `ports`, with the version of an un-kill."""

    settings: Settings
    database_url: str
    ports: Ports
    flags: "PostgresFlags"
    requests: RequestLog
    sessions: Sessions
    people: PeopleFile | None


@contextmanager
def open_api(settings: Settings) -> Iterator[Api | None]:
    """
    The HTTP API's parts; None where no database is named. One that is down, or at another schema, is each request's own error.

    Raises:
        SettingsError: the address of Prometheus cannot be used.
    """
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.postgres import (
        PostgresAudit,
        PostgresFlags,
        PostgresHeartbeats,
        PostgresRequests,
        PostgresSessions,
        open_engine,
    )

    if settings.database_url is None:
        yield None
        return
    with ExitStack() as opened:
        # Its own connections: whoever waits for the API's must not keep a kill at the flag door from one.
        engine = open_engine(settings.database_url, require_schema=False)
        opened.callback(engine.dispose)
        flags_engine = engine
        if settings.flags_database_url is not None:
            flags_engine = open_engine(settings.flags_database_url, require_schema=False)
            opened.callback(flags_engine.dispose)
        audit, flags = PostgresAudit(engine, EvidenceFiles(settings.evidence_folder)), PostgresFlags(flags_engine)
        ports = Ports(
            audit=audit,
            index=audit,
            flags=flags,
            metrics=NoMetrics() if settings.prometheus_url is None else make_metrics(settings),
            drills=_drills_if_possible(settings),
            heartbeats=PostgresHeartbeats(engine),
        )
        yield Api(
            settings=settings,
            database_url=settings.database_url,
            ports=ports,
            flags=flags,
            requests=PostgresRequests(engine),
            sessions=PostgresSessions(engine),
            people=open_people(settings),
        )


@contextmanager
def open_flag_source(settings: Settings) -> Iterator[tuple["PostgresFlagSource", "PostgresFlags"]]:
    """
    What the flag door reads from and kills through. A database that is down now is tried again.

    Raises:
        SettingsError: no flag store is named and none is running.
    """
    from controller.adapters.postgres import PostgresFlags, PostgresFlagSource, open_engine

    if settings.flags_url is None:
        raise SettingsError(NO_FLAGS)
    engine = open_engine(settings.flags_url, require_schema=False)
    try:
        yield PostgresFlagSource(settings.flags_url, engine), PostgresFlags(engine)
    finally:
        engine.dispose()
