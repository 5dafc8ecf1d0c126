"""
Slack's door: a click on a rollout's message becomes what any other door would do, by the person that Slack signed for.

    Socket Mode                 with PENSTOCK_SLACK_APP_TOKEN: no address of ours needs to be reachable
    POST /hooks/slack           with PENSTOCK_SLACK_SIGNING_SECRET: signed HTTP, for apps that have a request URL

Every payload is acknowledged within Slack's three seconds and acted on once, however often it comes: what a click asks for is bound to the question that
the person saw. Its one rule: who somebody is comes from people.yaml; without it no click counts.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import structlog
from slack_sdk.signature import SignatureVerifier
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controller.act import NEEDS_REASON, Answer, Click, press
from controller.adapters.slack.buttons import NotOurs, SlackClick, click_of, modal, told, whisper
from controller.adapters.slack.desk import SlackDesk
from controller.core.people import NotAllowed, People, Right, require
from controller.people import PeopleFile
from controller.ports import Ports
from specfile import SpecError

log = structlog.get_logger("penstock.slack")

PATH = "/hooks/slack"
BODY_MAX_BYTES = 1_048_576

Later = Callable[[], None]

SEEN = 4_096
"""Clicks that are remembered, so that one which Slack delivers again is not told about again."""

NOBODY = "this controller knows no people (PENSTOCK_PEOPLE_FILE), so no click counts"

BOUND = frozenset({Right.APPROVE, Right.REJECT, Right.OVERRIDE})
"""What is said to a question, and to no other."""


class SlackDoor:
    """
    Args:
        ports: What is acted on.
        people: Who may do what; None lets nobody.
        desk: To open modals and to answer.
    """

    def __init__(self, ports: Ports, people: PeopleFile | None, desk: SlackDesk) -> None:
        self._ports = ports
        self._people = people
        self._desk = desk
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, payload: Any) -> "tuple[dict[str, Any], Later | None]":
        """
        One payload of Slack's interactivity.

        Returns:
            What it is acknowledged with (of a modal: what becomes of it), and what is to be done after that. Neither raises for what a person
            or Slack can cause.
        """
        try:
            click = click_of(payload)
        except NotOurs as exc:
            log.warning("slack_payload_refused", reason=str(exc))
            return {}, None
        # A link: Slack has opened it. And what Slack delivers again was taken the first time.
        if click.verb is None or (click.trigger and not self._first(click.trigger)):
            return {}, None
        if click.submitted:
            return self._submitted(click), None
        return {}, lambda: self._clicked(click)

    def _clicked(self, click: SlackClick) -> None:
        if click.verb in NEEDS_REASON:
            # Asked again when it is submitted; but who may not is told before typing.
            answer = self._refused(click) or self._desk.open(click.trigger, modal(click))
        else:
            answer = self._act(click).text
        if answer:
            self._desk.tell(click.channel, click.user, whisper(answer))

    def _submitted(self, click: SlackClick) -> dict[str, Any]:
        if not click.reason:
            return {"response_action": "errors", "errors": {"reason": "a reason is needed"}}
        answer = self._act(click)
        return (
            {"response_action": "clear"} if answer.done else {"response_action": "update", "view": told("Refused", answer.text)}
        )

    def _first(self, trigger: str) -> bool:
        with self._lock:
            if trigger in self._seen:
                return False
            self._seen[trigger] = None
            while len(self._seen) > SEEN:
                self._seen.popitem(last=False)
        return True

    def _refused(self, click: SlackClick) -> str:
        """Why a person may not ask for this; "" if they may."""
        assert click.verb is not None
        people = self._known()
        if isinstance(people, str):
            return people
        try:
            require(people.in_slack(click.team, click.user, self._usergroups(click, people)), click.verb)
        except NotAllowed as exc:
            return str(exc)
        return ""

    def _act(self, click: SlackClick) -> Answer:
        people = self._known()
        if isinstance(people, str):
            return Answer(done=False, text=people)
        assert click.verb is not None
        if click.verb in BOUND and not click.digest:
            # Made before anybody was asked: it must not answer a question that its person did not see.
            return Answer(done=False, text=f"{click.rollout_id}: this button is older than the question; use the newest message")
        answer = press(
            Click(
                team=click.team,
                user=click.user,
                usergroups=self._usergroups(click, people),
                verb=click.verb.value,
                rollout_id=click.rollout_id,
                digest=click.digest,
                reason=click.reason,
                ticket=click.ticket,
                checks=click.checks,
            ),
            people,
            self._ports,
        )
        log.info(
            "slack_click",
            done=answer.done,
            verb=click.verb.value,
            rollout_id=click.rollout_id,
            user=click.user,
            text=answer.text[:300],
        )
        return answer

    def _known(self) -> People | str:
        """Everybody; or in words why nobody counts."""
        if self._people is None:
            return NOBODY
        try:
            return self._people.people()
        except SpecError:
            return "the people file cannot be read, so no click counts"

    def _usergroups(self, click: SlackClick, people: People) -> frozenset[str]:
        return self._desk.groups_of(click.user, [g.slack for g in people.groups])


# --- signed HTTP ----------------------------------------------------------------------------------------------------------------


def route(door: SlackDoor, signing_secret: str) -> Route:
    """
    Args:
        door: What takes the payloads.
        signing_secret: Of the app. Requests that are older than five minutes, or not signed with it, are refused (401).
    """
    verifier = SignatureVerifier(signing_secret)

    async def hook(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_MAX_BYTES:
                return Response("too long", 413)
        if not _signed(verifier, body, request):
            return Response("not signed by Slack", 401)
        try:
            form = parse_qs(body.decode(), strict_parsing=True)
            payload = json.loads(form["payload"][0])
        except (ValueError, KeyError, RecursionError):
            return Response("no payload of Slack's interactivity", 400)
        answer, later = await run_in_threadpool(door.take, payload)
        task = None if later is None else BackgroundTask(run_in_threadpool, later)
        return JSONResponse(answer, background=task) if answer else Response("", 200, background=task)

    return Route(PATH, hook, methods=["POST"])


def _signed(verifier: SignatureVerifier, body: bytes, request: Request) -> bool:
    try:
        return bool(verifier.is_valid_request(body, dict(request.headers)))
    except (ValueError, TypeError):
        return False  # a time that is no number, a signature or a body that is no text


# --- Socket Mode ----------------------------------------------------------------------------------------------------------------


@contextmanager
def socket(door: SlackDoor, app_token: str, desk: SlackDesk) -> Iterator[None]:
    """
    Listen by Socket Mode while inside; connections that break are made again by slack-sdk.

    A Slack that cannot be reached at the beginning is tried again and keeps nobody waiting.
    """
    from slack_sdk.socket_mode import SocketModeClient
    from slack_sdk.socket_mode.request import SocketModeRequest
    from slack_sdk.socket_mode.response import SocketModeResponse

    client = SocketModeClient(app_token=app_token, web_client=desk.web, trace_enabled=False)
    done = threading.Event()

    def listener(socket_client: Any, request: SocketModeRequest) -> None:
        answer: dict[str, Any] = {}
        later: Later | None = None
        try:
            if request.type == "interactive":
                answer, later = door.take(request.payload)
        except Exception:  # a bug must not keep Slack from its acknowledgement, nor end the listening
            log.exception("slack_click_broke")
        socket_client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id, payload=answer or None))
        try:
            if later is not None:
                later()
        except Exception:
            log.exception("slack_click_broke")

    client.socket_mode_request_listeners.append(listener)

    def connect() -> None:
        wait_s = 1.0
        while not done.is_set():
            try:
                client.connect()
                log.info("slack_socket_connected")
                return
            except Exception as exc:  # whatever Slack or the network do: later
                log.warning("slack_socket_failed", error=f"{type(exc).__name__}: {str(exc)[:200]}")
                done.wait(wait_s)
                wait_s = min(wait_s * 2, 60.0)

    threading.Thread(target=connect, name="slack-socket", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        _quietly(client.close)


def _quietly(act_: Callable[[], None]) -> None:
    try:
        act_()
    except Exception as exc:
        log.warning("slack_socket_not_closed", error=str(exc)[:200])
