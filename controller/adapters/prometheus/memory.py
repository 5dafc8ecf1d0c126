"""
What a reading of traffic leaves for the next one: the ledger of all questions, as JSON.

It stands between two looks, kept by the rollout's case. Its one rule: whatever is not exactly what was written is refused;
counting on from something else would count twice, or not at all.
"""

from collections.abc import Iterator, Mapping
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

    def dump(self) -> "Ledger":
        """As JSON, or given back to `load`; from now on nobody changes it."""
        return Ledger(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Memory":
        """
        Raises:
            ValueError: it is not what `dump` gave.
        """
        if isinstance(data, Ledger):
            return data.memory
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


class Ledger(Mapping[str, Any]):
    """A memory as the JSON that is recorded of it, made only when it is read: a guard's look ends in one that the next look takes as it is."""

    __slots__ = ("memory",)

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def __getitem__(self, key: str) -> Any:
        memory = self.memory
        match key:
            case "v":
                return VERSION
            case "at" | "since" | "base":
                return getattr(memory, key)
            case "questions":
                return {key: kept.dump() for key, kept in memory.books.items()}
            case "problems":
                return dict(memory.problems)
            case "absent":
                return {key: list(arms) for key, arms in memory.absent.items()}
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("v", "at", "since", "base", "questions", "problems", "absent"))

    def __len__(self) -> int:
        return 7


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
