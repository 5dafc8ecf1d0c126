"""The outbox, emptied: order, pacing, and what becomes of a letter that was not taken."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.adapters.log import LogNotifier
from controller.core.gates import Verdict
from controller.core.notice import Level, Line, Notice
from controller.deliver import PAUSE_S, Delivered, Pace, deliver
from controller.ports import Letter, NotifierRefused, NotifierUnavailable


def letter(number: int, rollout: str = "r1", level: Level = Level.NEWS, channel: str = "") -> Letter:
    return Letter(
        id=number,
        notice=Notice(
            rollout_id=rollout,
            seq=number,
            level=level,
            title="chat: gpt-4.1 to gpt-5",
            text="rolled back to 0%: error-rate",
            standing="ended at 0%",
            phases=("canary 1%",),
            phase=0,
            lines=(Line(gate="error-rate", verdict=Verdict.BREACH, text="4% bad requests, limit 1%"),),
            channel=channel,
        ),
    )


@dataclass
class Box:
    """An outbox that writes down what it was told."""

    letters: list[Letter]
    finished: list[int] = field(default_factory=list)
    failures: list[tuple[int, str, float | None, bool]] = field(default_factory=list)
    untried: list[int] = field(default_factory=list)

    def due(self, limit: int) -> list[Letter]:
        return self.letters[:limit]

    def done(self, letter: Letter) -> None:
        self.finished.append(letter.id)

    def failed(self, letter: Letter, reason: str, retry_after_s: float | None, *, final: bool) -> None:
        self.failures.append((letter.id, reason, retry_after_s, final))

    def back(self, letter: Letter) -> None:
        self.untried.append(letter.id)


@dataclass
class Somebody:
    """A notifier that takes letters, or raises what it was given for their number."""

    trouble: dict[int, Exception] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)

    def deliver(self, letter: Letter) -> None:
        self.seen.append(letter.id)
        if (problem := self.trouble.get(letter.id)) is not None:
            raise problem


@dataclass
class Time:
    """A clock that only sleeping moves."""

    now_s: float = 100.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now_s += seconds

    def pace(self, **options: Any) -> Pace:
        return Pace(clock=lambda: self.now_s, sleep=self.sleep, **options)


def run(box: Box, who: Somebody, limit: int = 20) -> Delivered:
    return deliver(box, who, limit, pace=Time().pace())


def test_letters_go_out_in_order_and_are_done() -> None:
    box, who = Box([letter(1), letter(2, "r2"), letter(3)]), Somebody()
    assert run(box, who) == Delivered(sent=3)
    assert who.seen == box.finished == [1, 2, 3]


def test_no_more_than_the_limit_goes_out_in_a_round() -> None:
    box, who = Box([letter(i, f"r{i}") for i in range(5)]), Somebody()
    assert run(box, who, limit=2) == Delivered(sent=2)


def test_a_letter_that_failed_is_not_overtaken_by_its_rollouts_next_one() -> None:
    box, who = Box([letter(1), letter(2), letter(3, "r2")]), Somebody({1: NotifierUnavailable("Slack answered with 503")})
    assert run(box, who) == Delivered(sent=1, failed=1, reason="Slack answered with 503")
    assert who.seen == [1, 3]
    assert box.failures == [(1, "Slack answered with 503", None, False)]
    assert box.finished == [3]


def test_a_refresh_behind_a_failed_letter_stays_where_it_is() -> None:
    box = Box([letter(1), letter(2, level=Level.INFO), letter(3)])
    run(box, Somebody({1: NotifierUnavailable("down")}))
    assert box.finished == []


def test_a_pause_that_the_other_side_names_ends_the_round_and_is_handed_on() -> None:
    box, who = Box([letter(1), letter(2, "r2")]), Somebody({1: NotifierUnavailable("429", 30.0)})
    time = Time()
    pace = time.pace()
    assert deliver(box, who, pace=pace) == Delivered(failed=1, reason="429")
    assert who.seen == [1]
    assert box.failures == [(1, "429", 30.0, False)]
    assert box.untried == [2]
    # Whatever comes due meanwhile waits as well.
    time.now_s += 29.0
    assert deliver(Box([letter(3, "r3")]), who, pace=pace) == Delivered()
    time.now_s += 1.0
    assert deliver(Box([letter(3, "r3")]), who, pace=pace) == Delivered(sent=1)


def test_a_notifier_that_is_down_is_not_asked_for_every_letter() -> None:
    box = Box([letter(i, f"r{i}") for i in range(10)])
    who = Somebody({i: NotifierUnavailable("down") for i in range(10)})
    assert run(box, who) == Delivered(failed=3, reason="down")
    assert who.seen == [0, 1, 2]
    assert box.untried == [3, 4, 5, 6, 7, 8, 9]


def test_a_refused_letter_is_final_and_the_next_one_goes_on() -> None:
    box, who = Box([letter(1), letter(2)]), Somebody({1: NotifierRefused("msg_too_long")})
    assert run(box, who) == Delivered(sent=1, refused=1, refusal="msg_too_long")
    assert box.failures == [(1, "msg_too_long", None, True)]
    assert box.finished == [2]


def test_letters_to_one_channel_keep_their_distance_over_rounds_and_other_channels_do_not_wait() -> None:
    time = Time()
    pace = time.pace()
    deliver(
        Box([letter(1, "a", channel="#x"), letter(2, "b", channel="#y"), letter(3, "c", channel="#x")]), Somebody(), pace=pace
    )
    assert time.slept == [PAUSE_S]
    time.now_s += 0.2
    deliver(Box([letter(4, "d", channel="#x")]), Somebody(), pace=pace)
    assert time.slept == [PAUSE_S, pytest.approx(PAUSE_S - 0.2)]


def test_a_round_ends_before_the_leases_of_its_letters_do() -> None:
    time, box = Time(), Box([letter(i, f"r{i}") for i in range(20)])
    result = deliver(box, Somebody(), pace=time.pace(pause_s=10.0))
    # The fifth is begun at 30 s and leaves at 40 s, the sixth is not begun.
    assert result == Delivered(sent=5)
    assert len(box.finished) == 5
    assert box.untried == list(range(5, 20))


def test_the_log_has_one_line_for_news_and_a_warning_for_alarms() -> None:
    with capture_logs() as lines:
        for n, level in enumerate((Level.INFO, Level.NEWS, Level.ALARM)):
            LogNotifier().deliver(letter(n, level=level))
    assert [(line["log_level"], line["seq"]) for line in lines] == [("info", 1), ("warning", 2)]
    assert lines[1]["rollout_id"] == "r1"
    assert lines[1]["worst_gate"] == "error-rate: breach: 4% bad requests, limit 1%"


def test_a_letter_that_meets_a_bug_does_not_hold_up_the_others_and_is_told_with_its_reason() -> None:
    box, who = Box([letter(1, "r1"), letter(2, "r2"), letter(3, "r1")]), Somebody({1: KeyError("ts")})
    done = run(box, who)
    assert box.finished == [2]
    assert box.failures == [(1, "KeyError: 'ts'", None, False)]
    assert (done.sent, done.failed, done.reason) == (1, 1, "KeyError: 'ts'")
