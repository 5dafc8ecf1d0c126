"""
The outbox: notices that were committed with their audit rows, handed out to whoever delivers them.

A letter that is handed out is leased: nobody else gets it before the lease ends, and if its holder dies it is handed out again. Its one
rule: of each rollout only the oldest waiting letter is handed out, so that people read the story in its order. Those that only refresh a
rollout's message come after all others, and not at all once a later one of the rollout waits, which refreshes it as well.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

import structlog
from sqlalchemy import Engine, Text, Update, and_, cast, func, literal, not_, select, update
from sqlalchemy.dialects.postgresql import insert

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import outbox
from controller.codec import CodecError, document, notice_from_json, notice_to_json
from controller.core.notice import Level, Notice
from controller.crash import Point, reached
from controller.ports import AuditUnavailable, Letter

LEASE = timedelta(seconds=60)
"""Longer than any delivery takes: a Slack call is limited to seconds."""

BACKOFF_S = (2.0, 300.0)
"""First and longest pause after a failure; doubled by each failure in a row."""

ATTEMPTS_COUNTED = 2**30
"""Beyond, they are no longer counted: a number that somebody wrote there must not overflow, which would stop all letters."""

ANNOUNCED = -(2**62)
"""Ids of letters that belong to no row begin here, in a stretch for each subject; those of rows are the rows' own, above 0."""

STRETCH, SUBJECTS = 2**33, 2**28

_ERROR_CHARS = 500

log = structlog.get_logger("penstock.outbox")

_REFRESHES = cast(outbox.c.notice, Text).contains(f'"level":"{Level.INFO.value}"')
"""
Edits the rollout's message and adds nothing to its thread.

By the text, in which quotes of other texts are escaped: the server's JSON functions refuse a notice in which somebody typed NUL or half a
surrogate pair, and with it all the others.
"""


def _overtaken() -> Update:
    """Closes refreshes that nobody delivers now and that a later letter of their rollout makes superfluous."""
    later = outbox.alias()
    follows = select(literal(1)).where(
        later.c.rollout_id == outbox.c.rollout_id,
        later.c.id > outbox.c.id,
        later.c.delivered_at.is_(None),
        not_(later.c.refused),
    )
    found = (
        select(outbox.c.id)
        .where(
            outbox.c.delivered_at.is_(None),
            not_(outbox.c.refused),
            outbox.c.due_at <= func.clock_timestamp(),
            _REFRESHES,
            follows.exists(),
        )
        .order_by(outbox.c.id)
        .with_for_update(skip_locked=True)
        .cte("overtaken")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        update(outbox)
        .where(outbox.c.id.in_(select(found.c.id)))
        .values(delivered_at=func.clock_timestamp(), last_error="not sent: a later notice refreshed the message")
    )


class PostgresOutbox:
    """`controller.ports.Outbox`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, limit: int) -> Sequence[Letter]:
        """
        Letters to deliver now, news before mere refreshes and each oldest first, at most one for each rollout; each is the caller's for `LEASE`.

        Raises:
            AuditUnavailable: they cannot be read.
        """
        earlier = outbox.alias()
        waits = and_(outbox.c.delivered_at.is_(None), not_(outbox.c.refused))
        behind = select(literal(1)).where(
            earlier.c.rollout_id == outbox.c.rollout_id,
            earlier.c.id < outbox.c.id,
            earlier.c.delivered_at.is_(None),
            not_(earlier.c.refused),
        )
        chosen = (
            select(outbox.c.id)
            .where(waits, outbox.c.due_at <= func.clock_timestamp(), not_(behind.exists()))
            .order_by(_REFRESHES, outbox.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            # Materialized: a subquery that is planned as a join may be evaluated again, and would lock more than `limit`.
            .cte("chosen")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        take = (
            update(outbox)
            .where(outbox.c.id.in_(select(chosen.c.id)))
            .values(due_at=func.clock_timestamp() + LEASE, attempts=func.least(outbox.c.attempts, ATTEMPTS_COUNTED) + 1)
            .returning(outbox.c.id, outbox.c.notice)
        )
        with translated(AuditUnavailable, "reading the outbox"), self._engine.begin() as connection:
            connection.execute(_overtaken())
            rows = connection.execute(take).all()
            reached(Point.LETTERS_LEASING)
        reached(Point.LETTERS_LEASED)
        letters = []
        for row in rows:
            try:
                letters.append(Letter(id=row.id, notice=notice_from_json(document(row.notice))))
            except CodecError as exc:
                self._set_aside(row.id, str(exc))
        return sorted(letters, key=lambda x: (x.notice.level is Level.INFO, x.id))

    def announce(self, notice: Notice) -> None:
        letter = json.dumps(notice_to_json(notice), separators=(",", ":"), sort_keys=True, allow_nan=False)
        now = func.clock_timestamp()
        subject = int.from_bytes(sha256(notice.rollout_id.encode()).digest()[:8]) % SUBJECTS
        values = {
            "id": ANNOUNCED + subject * STRETCH + notice.seq,
            "rollout_id": notice.rollout_id,
            "seq": notice.seq,
            "notice": letter,
        }
        with translated(AuditUnavailable, f"announcing {notice.rollout_id}/{notice.seq}"), self._engine.begin() as connection:
            connection.execute(insert(outbox).values(**values, created_at=now, due_at=now).on_conflict_do_nothing())

    def _set_aside(self, letter_id: int, reason: str) -> None:
        """A letter that this release cannot read must not stand before all others for ever; it stays in the table, refused."""
        log.error("letter_unreadable", letter_id=letter_id, error=reason)
        with translated(AuditUnavailable, f"setting letter {letter_id} aside"), self._engine.begin() as connection:
            connection.execute(
                update(outbox).where(outbox.c.id == letter_id).values(refused=True, last_error=reason[:_ERROR_CHARS])
            )

    def done(self, letter: Letter) -> None:
        """Raises AuditUnavailable: it may be handed out again."""
        with translated(AuditUnavailable, f"closing letter {letter.id}"), self._engine.begin() as connection:
            connection.execute(
                update(outbox)
                .where(outbox.c.id == letter.id, outbox.c.delivered_at.is_(None))
                .values(delivered_at=func.clock_timestamp(), last_error=None)
            )
            reached(Point.LETTER_CLOSING)
        reached(Point.LETTER_CLOSED)

    def failed(self, letter: Letter, reason: str, retry_after_s: float | None, *, final: bool) -> None:
        """Raises AuditUnavailable: it is tried again when its lease ends."""
        first_s, longest_s = BACKOFF_S
        # `attempts` was counted up when the letter was handed out; 2^8 is beyond the longest pause.
        doubled_s = func.least(first_s * func.power(2.0, func.least(outbox.c.attempts - 1, 8)), longest_s)
        pause_s = doubled_s if retry_after_s is None else literal(max(retry_after_s, 0.0))
        with translated(AuditUnavailable, f"putting off letter {letter.id}"), self._engine.begin() as connection:
            connection.execute(
                update(outbox)
                .where(outbox.c.id == letter.id, outbox.c.delivered_at.is_(None))
                .values(
                    due_at=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, pause_s),
                    last_error=reason.replace("\0", "")[:_ERROR_CHARS],
                    refused=final,
                )
            )
        reached(Point.LETTER_PUT_OFF)

    def back(self, letter: Letter) -> None:
        """Raises AuditUnavailable: it is handed out again when its lease ends."""
        with translated(AuditUnavailable, f"giving back letter {letter.id}"), self._engine.begin() as connection:
            connection.execute(
                update(outbox)
                .where(outbox.c.id == letter.id, outbox.c.delivered_at.is_(None))
                .values(due_at=func.clock_timestamp(), attempts=func.greatest(outbox.c.attempts - 1, 0))
            )

    def stuck(self) -> tuple[int, str]:
        """How many letters were tried and did not go out, and why the latest of them did not. Raises AuditUnavailable."""
        failed = and_(outbox.c.delivered_at.is_(None), not_(outbox.c.refused), outbox.c.last_error.is_not(None))
        latest = select(func.count().over(), outbox.c.last_error).where(failed).order_by(outbox.c.due_at.desc()).limit(1)
        with translated(AuditUnavailable, "counting the outbox"), self._engine.connect() as connection:
            row = connection.execute(latest).one_or_none()
        return (0, "") if row is None else (int(row[0]), str(row[1]))

    def waiting(self) -> int:
        """How many letters wait, whether due or not. Raises AuditUnavailable."""
        with translated(AuditUnavailable, "counting the outbox"), self._engine.connect() as connection:
            count = select(func.count()).select_from(outbox).where(outbox.c.delivered_at.is_(None), not_(outbox.c.refused))
            return int(connection.scalar(count) or 0)
