"""
The head of the audit log, made known outside the database, so that nobody can cut or rewrite the log unseen.

It stands beside `deliver`: a schedule calls it, with Prefect or without. Its one rule: it looks before it publishes. A log that no longer holds
what was published last gets an alarm, and no new head to hide behind.
"""

from dataclasses import dataclass
from datetime import datetime

from controller.core.chain import HEAD_NOTICE
from controller.core.notice import Level, Notice
from controller.ports import HeadBook, HeadSource, Outbox, SignedHead, Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """
    Args:
        head: What is published now; None for an empty log.
        fresh: It was not published before.
        broken: What the log no longer holds, in words; "" for nothing. Then nothing was published.
    """

    head: SignedHead | None
    fresh: bool = False
    broken: str = ""


def publish(log: HeadSource, now: datetime, book: HeadBook, signer: Signer, outbox: Outbox, text: str = "") -> Published:
    """
    Publish the head that the log has now, to the book and to people.

    Args:
        log: Whose head.
        now: The database's clock.
        book: The file of heads.
        signer: Signs them, if there is a key.
        outbox: On the way to people; told after the book.
        text: Where the book is, for people.

    Raises:
        BadHeads: the book cannot be read or written.
        AuditUnavailable: the log cannot be read, or people not be told.
    """
    last = book.last()
    if last is not None and (broken := broken_since(log, last)):
        outbox.announce(_notice(last, Level.ALARM, f"{broken}; run penstock audit verify --heads"))
        return Published(head=last, broken=broken)
    head = log.head()
    if head is None:
        return Published(head=None)
    signed = signer.sign(head, now)
    fresh = book.append(signed)
    said = f"head {head}, {'signed by key ' + signed.key if signed.key else 'not signed'}, in {text}"
    # Every time: whoever died after the line above has told nobody, and an announcement counts once.
    outbox.announce(_notice(signed, Level.NEWS, said))
    return Published(head=signed, fresh=fresh)


def broken_since(log: HeadSource, published: SignedHead) -> str:
    """
    What the log no longer holds of a published head, in words; "" if it holds it.

    Raises:
        AuditUnavailable: it cannot be read.
    """
    found = log.head(published.id)
    if found is None:
        end = log.head()
        return f"row {published.id} was published and is not in the log any more, which ends at {0 if end is None else end.id}"
    if found.hash != published.hash:
        return f"row {published.id} has hash {found.hash[:12]}, {published.hash[:12]} was published"
    return ""


def _notice(head: SignedHead, level: Level, text: str) -> Notice:
    # An alarm stands beside the news of the same row.
    seq = -head.id if level is Level.ALARM else head.id
    return Notice(
        rollout_id=HEAD_NOTICE,
        seq=seq,
        level=level,
        title="Audit log",
        text=text,
        standing=f"row {head.id}",
        phases=(),
        phase=-1,
        ask="penstock audit verify",
    )


__all__ = ["Published", "broken_since", "publish"]
