"""What is taken out of logs and error texts, what is left alone, and that canaries never come out."""

import io
import json
import sys
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from router import logs
from router.config import Redact
from router.presidio import recognisers
from router.redact import UNREADABLE, Redactor, luhn
from tests.router.harness import Upstream, chunk, config, cut, disconnect, events, flag, put, serve_router, status

ALL = Redactor(Redact())


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to ann.o'neil+x@mail.example.co.uk now", "write to ann.o'[email] now"),
        ("a@b.de,c@d.fr", "[email],[email]"),
        ("call +49 30 1234567 today", "call [phone] today"),
        ("call +14155552671.", "call [phone]."),
        ("(030) 123456", "[phone]"),
        ("555-123-4567", "[phone]"),
        ("card 4111 1111 1111 1111 expires", "card [card] expires"),
        ("4012888888881881", "[card]"),
        ("from 10.1.2.3:8080", "from [ip]:8080"),
        ("from 2001:db8::8a2e:370:7334 and ::1", "from [ip] and [ip]"),
        ("key sk-proj-abcDEF1234567890", "key [api_key]"),
        ("sk-ant-api03-AAAABBBBCCCC", "[api_key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[api_key]"),
        ("ghp_0123456789abcdefABCDEF0123456789abcd", "[api_key]"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [api_key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "[api_key]"),
    ],
)
def test_takes_out_what_looks_like_somebodys(text: str, redacted: str) -> None:
    assert ALL.text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "status 500 (rate_limit_exceeded, messages[0].content)", "no answer within 30s", "gpt-4.1-2025-04-14",
        "4111 1111 1111 1112", "1234567890123456", "version 1.2.3", "999.1.2.3", "2026-11-26T08:12:31Z", "12:30:45",
        "req_9b710715c037f15b3d13cf0e6f270125", "about 400000 tokens", "3.14159265", "cannot connect within 5s", "std::map",
        "risk-free-returns", "task-12",
    ],
)  # fmt: skip
def test_leaves_alone_what_only_resembles_it(text: str) -> None:
    assert ALL.text(text) == text


@pytest.mark.parametrize("number", ["79927398713", "4111111111111111", "378282246310005"])
def test_luhn_knows_a_right_check_digit(number: str) -> None:
    assert luhn(number)
    assert not any(luhn(number[:-1] + d) for d in "0123456789" if d != number[-1])


@given(st.text(max_size=200))
def test_any_text_goes_through_and_once_is_enough(text: str) -> None:
    once = ALL.text(text)
    assert ALL.text(once) == once


def test_only_the_patterns_asked_for_and_ones_own() -> None:
    one = Redactor(Redact.model_validate({"patterns": ["email"], "custom": {"badge": r"E-\d{4}"}}))
    assert one.text("E-1234 a@b.de 10.0.0.1") == "[badge] [email] 10.0.0.1"


def test_trees_are_redacted_to_their_leaves() -> None:
    assert ALL.tree({"a@b.de": ["a@b.de", {"x": "10.0.0.1"}, 5, None]}) == {"a@b.de": ["[email]", {"x": "[ip]"}, 5, None]}


def shouting(text: str) -> str:
    return text.replace("Falcon", "[project]")


def failing(text: str) -> str:
    raise KeyError(text)


def silent(text: str) -> None:
    return None


def own(name: str) -> Redactor:
    return Redactor(Redact(use=f"{__name__}:{name}"))


def test_a_function_of_ones_own_comes_after_the_patterns() -> None:
    assert own("shouting").text("Falcon: a@b.de") == "[project]: [email]"


@pytest.mark.parametrize("name", ["failing", "silent"])
def test_a_text_that_the_function_fails_on_is_not_let_through(name: str) -> None:
    assert own(name).text("Falcon") == UNREADABLE


@pytest.mark.parametrize(
    ("use", "says"), [("no.such.module:f", "no.such.module:f"), ("json:nothing", "nothing"), ("json:__name__", "no function")]
)
def test_a_function_that_is_not_there_is_said_at_start_up(use: str, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        Redactor(Redact(use=use))
    assert says in str(raised.value)


def test_presidio_is_named_with_its_extra_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    recognisers.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ValueError, match=r"penstock\[presidio\]"):
        Redactor(Redact(engine="presidio"))


class TestPresidio:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("presidio_analyzer", reason="the extra `presidio` is not installed")
        recognisers.cache_clear()

    def test_knows_numbers_that_the_patterns_do_not(self) -> None:
        redactor = Redactor(Redact(engine="presidio", countries=["us"]))
        assert redactor.text("IBAN DE89370400440532013000, a@b.de") == "IBAN [iban_code], [email]"
        assert redactor.text("wallet 1BoatSLRHtKNngkdXEeobR76b53LETtpyT") == "wallet [crypto]"

    def test_leaves_log_lines_alone(self) -> None:
        text = "status 500 (rate_limit_exceeded, messages[0].content) no answer within 30s from http://host/v1 at 2026-11-26T08:12:31Z"
        assert Redactor(Redact(engine="presidio", patterns=[], countries=["us"])).text(text) == text

    def test_a_country_that_it_does_not_know_is_said(self) -> None:
        with pytest.raises(ValueError, match="zz"):
            Redactor(Redact(engine="presidio", countries=["zz"]))


CANARY = "CANARY-7f3a91"
SECRETS = (CANARY, "canary@secret.example", "4012888888881881", "sk-canary0123456789abcdef", "+49 30 99887766")
TEXT = " ".join(SECRETS)


def telling(code: int) -> Any:
    """A provider whose error says everything it was told, in every field."""
    error = {"message": TEXT, "type": TEXT, "param": TEXT, "code": TEXT}
    return status(code, json.dumps({"error": error}))


FAULTS = [
    telling(400), telling(401), telling(429), telling(500), telling(200), status(200, TEXT), disconnect,
    events(b"data: " + TEXT.encode() + b"\n\n"),
    events(f"data: {json.dumps({'error': {'message': TEXT, 'code': TEXT}})}\n\n".encode()),
    cut(chunk("old", {"content": "Hal"})),
    events(chunk("old", {"content": "Hal"}), f"data: {json.dumps({'error': {'message': TEXT, 'code': TEXT}})}\n\n".encode()),
]  # fmt: skip


async def test_canaries_never_come_out_in_logs_metrics_or_error_texts(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Secrets in the prompt, the unit, the key, headers and the providers' own errors. The client gets back what a provider said
    about its request, without what looks like somebody's; logs and metrics have nothing of it at all.
    """
    lines = io.StringIO()
    monkeypatch.setattr("sys.stderr", lines)
    before = structlog.get_config()
    logs.configure("info", ALL.tree)
    structlog.configure(cache_logger_on_first_use=False)
    try:
        async with serve_router(config(upstream.url, log_requests=True)) as router:
            put(router, flag(100_000, shadow_weight=0))
            for fault in FAULTS:
                upstream.script = dict.fromkeys(("old", "new", "spare"), fault)
                for stream in (False, True):
                    messages = [{"role": "user", "content": TEXT}]
                    body = {"model": "chat", "messages": messages, "stream": stream, "user": TEXT, "metadata": {"x": TEXT}}
                    headers = {"authorization": f"Bearer {SECRETS[3]}", "x_penstock_unit": CANARY, "x_request_id": "415-555-2671"}
                    async with await router.post(body, **headers) as response:
                        text = await response.text()
                        assert not [secret for secret in SECRETS[1:] if secret in text], text
                        if response.status != 400:
                            assert CANARY not in text, text
            async with router.http.get(f"{router.url}/metrics") as response:
                shown = await response.text()
    finally:
        structlog.configure(**before)
    logged = lines.getvalue()
    assert logged.count("attempt_failed") >= len(FAULTS) and logged.count("stream_broken") == 2
    for secret in (*SECRETS, "415-555-2671"):
        assert secret not in logged and secret not in shown
