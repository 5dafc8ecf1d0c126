"""
What a reading of traffic leaves for the next one: the ledger of all questions, as JSON.

It stands between two looks, kept by the rollout's case. Its one rule: whatever is not exactly what was written is refused;
counting on from something else would count twice, or not at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.core.ledger import State

VERSION = 1


@dataclass(slots=True, kw_only=True)
class Memory:
    """
    The ledger of all questions.

    Args:
        at: The last beat that was read.
        since: When the phase began that it belongs to.
        base: Where counting began in that phase: `since`, or `at` if that was later.
        books: What is remembered of each question, by key.
        problems, absent: Of the last reading, for looks that find no new beat.
    """

    at: int = 0
    since: int = 0
    base: int = 0
    books: dict[str, "Kept"] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {
            "v": VERSION,
            "at": self.at,
            "since": self.since,
            "base": self.base,
            "questions": {key: kept.dump() for key, kept in self.books.items()},
            "problems": dict(self.problems),
            "absent": {key: list(arms) for key, arms in self.absent.items()},
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Memory":
        """
        Raises:
            ValueError: it is not what `dump` gave.
        """
        if not data:
            return cls()
        if data.get("v") != VERSION:
            raise ValueError(f"it is of version {data.get('v')!r}, this release reads {VERSION}")
        try:
            return cls(
                at=int(data["at"]),
                since=int(data["since"]),
                base=int(data["base"]),
                books={key: Kept.load(kept) for key, kept in data["questions"].items()},
                problems={key: str(text) for key, text in data["problems"].items()},
                absent={key: tuple(arms) for key, arms in data["absent"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ValueError(f"{type(exc).__name__}: {exc}") from exc


@dataclass(slots=True, kw_only=True)
class Kept:
    """
    Args:
        state: The question's own.
        base: Where its counting began; -1 before it did.
        at: The last beat that was consumed.
        asked: Digest of what was asked for. Asked otherwise, as by another release, the same counters would look like new ones.
    """

    state: State = field(default_factory=State)
    base: int = -1
    at: int = -1
    asked: str = ""

    def dump(self) -> dict[str, Any]:
        return {"base": self.base, "at": self.at, "asked": self.asked, **self.state.dump()}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Kept":
        return cls(state=State.load(data), base=int(data["base"]), at=int(data["at"]), asked=str(data["asked"]))
