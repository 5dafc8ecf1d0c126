"""
The edges of the controller: what it asks of the world, in its own words, and how each may fail.

Each port has one to three methods. The real and the in-memory version stand in `controller.adapters` and pass the same tests. Its one
rule: only these errors cross a port; an adapter translates whatever its library raises.

    PortError
    +-- Unavailable            try again later: the thing is down, slow or refuses
    |   +-- AuditUnavailable   no row was written as far as we know: read again before you write again
    |   +-- FlagUnavailable    the write may or may not have landed: read before you write again
    |   +-- NotifierUnavailable  carries `retry_after_s` when the other side named it
    +-- SeqTaken               another controller has written this row: start over from the log
    +-- FlagConflict           the flag is at another version than expected
    +-- FlagKilled             the flag is killed and must not be raised
    +-- FlagHeld               another rollout holds the flag
    +-- UnknownFlag            there is no such flag to kill
    +-- UnknownRollout         no rollout has this id
    +-- BadHeads               the file of published heads, or a key for them, cannot be used
    +-- TextLost               a text that a row refers to is gone or was changed: waiting does not bring it back
    +-- NotifierRefused        the message can never be delivered as it is
    +-- DrillRefused           the router takes no drill: from this sender, or now
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from controller.core.chain import Head
from controller.core.measurement import Measurement
from controller.core.notice import Notice
from controller.core.plan import Gate
from controller.core.rollout import Entry, Event
from controller.core.traffic import Question, TrafficRead
from controller.shelf import CaseShelf, Mark, StandingShelf
from flagspec import RouteFlag, Variant


class PortError(Exception):
    """Anything a port can raise."""


class Unavailable(PortError):
    """Temporary: the same call may succeed later."""


class AuditUnavailable(Unavailable):
    pass


class FlagUnavailable(Unavailable):
    pass


class NotifierUnavailable(Unavailable):
    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SeqTaken(PortError):
    pass


class FlagConflict(PortError):
    pass


class FlagKilled(PortError):
    pass


class FlagHeld(PortError):
    pass


class UnknownFlag(PortError):
    pass


class UnknownRollout(PortError):
    pass


class TextLost(PortError):
    pass


class BadHeads(PortError):
    pass


class NotifierRefused(PortError):
    pass


class DrillRefused(PortError):
    pass


# --- audit log ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """A row to be written; the log adds its time and its place in the hash chain."""

    rollout_id: str
    seq: int
    actor: str
    event: Event


class Texts(Protocol):
    """The part of the log that long texts are read from."""

    def text(self, reference: str) -> str:
        """As `AuditLog.text`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """
    What a rollout's log has that a reader has not.

    Args:
        entries: In order of `seq`, without their measurements, which no replay needs.
        whole: They begin with row 1, because the marked row is not there (any more: the database was restored from a backup).
        mark: Of the last row there is.
    """

    entries: tuple[Entry, ...]
    whole: bool
    mark: Mark


class HeadSource(Protocol):
    """The end of the log's hash chain, whose publication elsewhere makes it binding."""

    def head(self, audit_id: int | None = None) -> Head | None:
        """
        A row of the chain.

        Args:
            audit_id: Which; the last one if None.

        Returns:
            None if there is no such row.

        Raises:
            AuditUnavailable: it cannot be read.
        """


class AuditLog(HeadSource, Protocol):
    """The append-only log. All times are the database's."""

    def now(self) -> datetime:
        """The database's clock, aware UTC."""

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        """
        All rows of a rollout in order of `seq`.

        Raises:
            UnknownRollout: there are none.
            AuditUnavailable: they cannot be read.
        """

    def news(self, known: Mapping[str, Mark]) -> Mapping[str, News]:
        """
        The rows after those that are known, of any number of rollouts at once.

        Args:
            known: By rollout.

        Returns:
            By rollout. One that does not exist, or whose rows this release cannot read, is left out: `entries` says why.

        Raises:
            AuditUnavailable: they cannot be read.
        """

    def entry(self, rollout_id: str, seq: int) -> Entry:
        """
        One row with its raw answers; `entries` may give references (``sha256:...``) in their place.

        Raises:
            UnknownRollout: there is no such row.
            AuditUnavailable: it cannot be read.
        """

    def text(self, reference: str) -> str:
        """
        What a reference in a row stands for; any other text is itself.

        Raises:
            TextLost: it is not there, or is not what was written.
            AuditUnavailable: it cannot be read now.
        """

    def append(self, new: NewEntry, notice: Notice | None) -> Entry:
        """
        Write one row and the notice that tells of it, in one transaction.

        An `Opened` row takes the flag for its rollout; the row that ends a rollout (`ends`) gives it back.

        Raises:
            SeqTaken: (rollout_id, seq) exists.
            FlagHeld: an Opened row for a flag that another rollout holds.
            AuditUnavailable: see above; after an unclear commit the adapter has read again by key.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """
    A head as it is published.

    Args:
        id, hash, at: Of the row.
        published_at: When it was published, by the database's clock.
        release: Of the program that did.
        key: Fingerprint of the key that signed it; "" for an unsigned one.
        signature: Base64; "" for an unsigned one.
    """

    id: int
    hash: str
    at: datetime
    published_at: datetime
    release: str
    key: str = ""
    signature: str = ""


class Signer(Protocol):
    def sign(self, head: Head, published_at: datetime) -> SignedHead:
        """Signed if there is a key to sign with."""


class HeadBook(Protocol):
    """Where heads are published: a place that the database's owner cannot rewrite."""

    def last(self) -> SignedHead | None:
        """The one published last. Raises BadHeads."""

    def append(self, signed: SignedHead) -> bool:
        """
        Publish a head.

        Returns:
            False if it is the one published last.

        Raises:
            BadHeads: it could not be written.
        """


class RolloutIndex(Protocol):
    """Which rollouts there are."""

    def active(self) -> Sequence[str]:
        """Ids of the rollouts that have not ended: those that hold a flag, oldest first, and (a little later) those whose hold was lost."""

    def known(self, limit: int) -> Sequence[str]:
        """Ids of the latest rollouts, ended ones included, newest first."""


# --- flags ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagChange:
    """
    All that a decision writes into a flag; version and revision are the store's.

    Args:
        not_after: A raise is refused after this time of the store's own clock: a controller that slept between decision and
            write must not raise on stale evidence. None for no end.
        lease: How long the weights hold from the store's now on, unless renewed; None for no end.
        keeps_lease: The end of the lease stays what it is, whatever `lease` says.
    """

    environment: str
    key: str
    control: Variant
    candidate: Variant
    salt: str
    unit: str
    weight: int
    shadow_weight: int
    decision_id: str
    not_after: datetime | None = None
    lease: timedelta | None = None
    keeps_lease: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagCapabilities:
    """
    What a store can promise.

    Args:
        cas: ``native`` when a write can be refused by version, ``none`` when it can only be read back.
        granularity: Smallest step of a weight, in thousandths of a percent.
        propagation_bound_s: Within how many seconds a reader sees a write, at the latest.
    """

    cas: str
    granularity: int
    propagation_bound_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """
    What became of an environment whose store had gone back in time.

    Args:
        environment: Which.
        was, revision: Of the store before and after.
        lowered: Flags that were part-way and carry 0 now.
        kept: Flags that send everybody to the candidate, as before: nobody knows whether that is still meant.
    """

    environment: str
    was: int
    revision: int
    lowered: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class FlagStore(Protocol):
    capabilities: FlagCapabilities

    def now(self) -> datetime:
        """The store's clock, aware UTC: leases are measured by it. Raises FlagUnavailable."""

    def read(self, environment: str, key: str) -> RouteFlag | None:
        """None when there is no such flag. Raises FlagUnavailable."""

    def read_all(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], RouteFlag]:
        """
        Flags by environment and key, those that exist; one that cannot be read is left out, too, and `read` says why.

        Raises:
            FlagUnavailable: none can be read.
        """

    def write(self, change: FlagChange, expected_version: int) -> RouteFlag:
        """
        Write if the flag is at `expected_version` (0: it does not exist yet).

        Raises:
            FlagConflict: it is not, or `not_after` has passed.
            FlagKilled: it is killed and the change has weight > 0 or shadow_weight > 0.
            FlagUnavailable: unknown whether it landed.
        """

    def renew(self, environment: str, key: str, lease: timedelta, expected_version: int) -> RouteFlag:
        """
        Let the weights hold for `lease` from the store's now on. That is no new version: a raise that was read before it still fits.

        Raises:
            FlagConflict: it is at another version, is killed, or its lease has lapsed: nothing brings traffic back in silence.
            FlagUnavailable: unknown whether it landed.
        """

    def set_killed(self, environment: str, key: str, killed: bool, *, actor: str, reason: str) -> RouteFlag:
        """
        The kill switch: unconditional and latched. Un-killing sets the weights to 0.

        Raises:
            UnknownFlag: there is no such flag.
            FlagUnavailable: unknown whether it landed.
        """

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None:
        """
        Readers have seen revision `seen`: if the store has not come so far, it was restored from a backup. Its revision is moved above
        theirs, flags that are part-way are lowered to 0, for the store may have forgotten who lowered them, and all are written again.

        Returns:
            None when the store is at that revision or above.

        Raises:
            FlagUnavailable: unknown whether it landed; `seen` is so far off that no store can have been there; the store is read-only.
        """


# --- metrics --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """
    Whose traffic is measured, and when.

    Args:
        environment, flag: The flag under evaluation.
        arm: ``candidate`` in live phases, ``shadow`` in shadow phases.
        since: Start of the window: when this phase's weight was confirmed.
        recent: Length of the window in which a candidate may not be silent: requests of long ago must not speak for it.
        opened_at: Start of the rollout, for what counts over all phases.
        at: End of the window and evaluation time of every query.
        step: Distance of the beats that traffic is read on.
        profile: Name of the metric profile.
        models: Model of the ``baseline`` and of the ``candidate``, for profiles that tell the arms apart by it.
        arms: Labels of each arm's series instead of the profile's own.
        requests: Selector of what counts every request, instead of the profile's own.
        history: How much of the baseline's past is read before the first phase.
        history_step: Distance of two increments of it.
    """

    environment: str
    flag: str
    arm: str
    since: datetime
    recent: timedelta
    opened_at: datetime
    at: datetime
    step: timedelta = timedelta(seconds=15)
    profile: str = "router"
    models: Mapping[str, str] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    requests: str = ""
    history: timedelta = timedelta(hours=6)
    history_step: timedelta = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a look is going to ask a metric source: of `measure` and of `traffic`."""

    gates: Sequence[Gate]
    questions: Sequence[Question]
    scope: Scope
    ledger: Mapping[str, Any]


class MetricSource(Protocol):
    def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
        """
        What is the case at `scope.at`, one measurement for each gate: those that are no statistics (events, alerts, silence).

        Never raises for anything the source does: that is a QueryFailed measurement.
        """

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        """
        What both arms did since the last reading.

        Args:
            questions: What to count.
            scope: Whose traffic; `since` is when the phase began. What happened before it is not counted.
            ledger: Of the last reading of this rollout; empty for the first one, which also brings the baseline's history.

        Never raises for anything the source does: that is a TrafficRead without traffic.
        """

    def together(self, planned: Sequence[Planned]) -> tuple["MetricSource", int]:
        """
        A source that answers as this one does, and has asked at once what it could of what these looks are going to ask.

        Args:
            planned: Of one moment (`Scope.at`).

        Returns:
            It, and for how many of the looks, from the first: as many as can be held at a time.

        Never raises for anything the source does: what failed fails the looks that ask for it.
        """


# --- drills ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drilled:
    """
    What became of a failure on purpose.

    Args:
        answered_by: The model that answered in the candidate's place; "" if none did.
        took: From the request to the end of the answer.
        text: Why nobody answered; "" if somebody did.
    """

    answered_by: str
    took: timedelta
    text: str = ""


class Drills(Protocol):
    def fallback(self, environment: str, flag: str, *, route: str = "", streaming: bool = False) -> Drilled:
        """
        Let a flag's candidate fail once on purpose, for a request that no user made, so that the fallback must answer.

        Args:
            route: Where several routes have the flag; "" for the first.
            streaming: Ask for a stream.

        Raises:
            DrillRefused: nothing was exercised: the router does not let this sender, or has no traffic for the candidate now.
            Unavailable: the router does not answer; something may have been exercised.
        """


# --- people ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A notice on its way, with the identity that makes delivering it twice harmless."""

    id: int
    notice: Notice


class Outbox(Protocol):
    """Notices that were committed and not yet delivered."""

    def due(self, limit: int) -> Sequence[Letter]:
        """
        The oldest that may be tried now; none of a rollout whose earlier letter waits. Letters of level INFO come last, and those that a later
        one of their rollout follows are closed unsent. Raises AuditUnavailable.
        """

    def announce(self, notice: Notice) -> None:
        """A notice that tells of no row of a rollout; once, however often it is announced. Raises AuditUnavailable."""

    def done(self, letter: Letter) -> None:
        """It was delivered."""

    def failed(self, letter: Letter, reason: str, retry_after_s: float | None, *, final: bool) -> None:
        """It was not: try again after a pause, or never when `final`."""

    def back(self, letter: Letter) -> None:
        """It was not even tried: it is due again, as if it had not been handed out."""


class Notifier(Protocol):
    def deliver(self, letter: Letter) -> None:
        """
        Raises:
            NotifierUnavailable: try again later.
            NotifierRefused: never try this again.
        """


GATE_CHECK_FAILED = "gate-check-failed"
"""Whose beats are those of gate checks that could not look at a rollout; those that could are ``gate-check``'s."""


class Heartbeats(Protocol):
    """When those who look did so last; no part of the audit log. All times are the database's."""

    def beat(self, who: str, rollouts: Sequence[str] = ()) -> None:
        """
        `who` (``guard``, ``gate-check``, ...) is alive, and has just looked at these rollouts.

        Raises AuditUnavailable.
        """

    def last_beat(self, who: str, rollout_id: str = "") -> datetime | None:
        """When `who` was last alive, or last looked at a rollout; None for never. Raises AuditUnavailable."""


# --- requests -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """
    What is known of a request with this caller and key.

    Args:
        ours: It is new: the caller of `take` does the work and answers.
        same: Its fingerprint is the one that was asked for.
        status, answer: Of the work that was done before; None while somebody else does it.
    """

    ours: bool = False
    same: bool = True
    status: int | None = None
    answer: str | None = None


class RequestLog(Protocol):
    """Requests that must be done once however often they are sent. Each method raises AuditUnavailable."""

    def take(self, caller: str, key: str, fingerprint: str) -> Taken:
        """Take the request, or find out what became of it. One that was taken and never answered can be taken again after a while."""

    def answer(self, caller: str, key: str, status: int, answer: str) -> None:
        """Keep the answer to a request that was taken."""

    def give_back(self, caller: str, key: str) -> None:
        """It came to nothing: it may be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    Somebody who is logged in to the web console.

    Args:
        person: Name.
        proof: What the person logged in with, as a digest: when that is taken back, so is the session.
        expires_at: From then on it is none.
    """

    person: str
    proof: str = field(repr=False)
    expires_at: datetime


class Sessions(Protocol):
    """Who is logged in; by the digest of a key that only the browser has. Each raises AuditUnavailable."""

    def open(self, digest: str, person: str, proof: str, lasts: timedelta) -> None: ...

    def find(self, digest: str) -> Session | None:
        """None for none, or one that has expired."""

    def close(self, digest: str) -> None:
        """It is none from now on; safe to call again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """
    What `tick` and the commands need.

    Args:
        heartbeats: None where nobody watches whether others look.
        shelf, standings: This process's own; they save reading, and losing them changes nothing.
        drills: None where no router or no token is known.
    """

    audit: AuditLog
    index: RolloutIndex
    flags: FlagStore
    metrics: MetricSource
    shelf: CaseShelf = field(default_factory=CaseShelf)
    standings: StandingShelf = field(default_factory=StandingShelf)
    drills: Drills | None = None
    heartbeats: Heartbeats | None = None
