"""
What goes in and out of the API, for checking and for OpenAPI.

Answers are made by `controller.describe`, as `-o json` prints them; these models document them, and tests hold the two together. Its one
rule: what comes in may hold nothing that is not read.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.act import REASON_MAX
from controller.core.rollout import Check

ROLLOUT_ID = r"^[a-z0-9][a-z0-9._-]{0,62}-[0-9a-f]{8}$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME)]
Reason = Annotated[
    str, Field(min_length=1, max_length=REASON_MAX, pattern=r"^[^\x00]*\S[^\x00]*$", description="Goes into the audit log")
]
Ticket = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*\S[^\x00]*$", examples=["INC-4711"])]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="`step` (`question.digest`) of the rollout as it was seen")]
State = Literal["pending", "baking", "awaiting_approval", "paused", "moving", "promoted", "rolled_back", "aborted", "broken"]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReasonIn(_In):
    reason: Reason


class ApproveIn(_In):
    digest: Digest
    groups: list[Name] = Field([], max_length=20, description="In whose name, of your own groups; default: all of them")


class RejectIn(_In):
    digest: Digest
    reason: Reason


class PromoteIn(_In):
    digest: Digest


class OverrideIn(_In):
    digest: Digest
    checks: list[Check] = Field(min_length=1, max_length=3)
    reason: Reason
    ticket: Ticket


class UnkillIn(_In):
    reason: Reason
    version: Annotated[int, Field(ge=1, lt=2**63, description="Of the killed flag, as it was seen")]


class Summary(BaseModel):
    rollout_id: str
    state: State
    standing: str
    environment: str | None = None
    flag: str | None = None
    baseline: str | None = None
    candidate: str | None = None
    weight: float | None = Field(None, description="Share of the units, 0..1")
    exposed_requests: int | None = None
    opened_at: str | None = None
    opened_by: str | None = None


class Page(BaseModel):
    rollouts: list[Summary]
    next: str | None = Field(description="The cursor of the next page; null on the last one")


class PhaseOut(BaseModel):
    name: str
    mode: Literal["shadow", "live"]
    traffic: float
    bake_s: float
    started_at: str | None
    seconds: float | None
    current: bool


class GateOut(BaseModel):
    gate: str
    verdict: Literal["pass", "breach", "insufficient", "error"]
    mode: Literal["enforce", "warn", "dry_run"]
    reason: str
    observed: float | None = None
    limit: float | None = None
    interval: list[float] | None = None
    unit: str | None = None
    n: float | None = None
    n_baseline: float | None = None
    log_e_breach: float | None = None
    log_e_proof: float | None = None
    log_e_needed: float | None = None
    missing: float | None = None
    guarantee: str | None = None


class DecisionOut(BaseModel):
    seq: int
    at: str
    actor: str
    kind: str
    why: str
    text: str
    weight_before: float
    weight_after: float


class VoteOut(BaseModel):
    actor: str
    at: str
    expires_at: str


class ApprovalOut(BaseModel):
    from_: list[str] = Field(alias="from")
    count: int
    not_requester: bool
    given: list[VoteOut]
    lacking: int


class QuestionOut(BaseModel):
    digest: str
    entering: str
    asked_at: str
    unproven: list[str]
    approvals: list[ApprovalOut]


class OverrideOut(BaseModel):
    actor: str
    at: str
    until: str
    checks: list[Check]
    reason: str
    ticket: str


class FrozenOut(BaseModel):
    name: str
    until: str


class FreezeOut(BaseModel):
    name: str
    starts_at: str
    ends_at: str


class Detail(Summary):
    phases: list[PhaseOut]
    last_decision: DecisionOut | None
    next: str
    next_look: str | None = Field(description="When the next gate check is due; null where only a person can change something")
    gates: list[GateOut]
    question: QuestionOut | None
    override: OverrideOut | None
    frozen: FrozenOut | None = Field(description="The freeze in force: nothing is raised")
    freezes: list[FreezeOut] = Field(description="Freezes of the next 14 days")
    step: str = Field(description="Digest of the step that comes next; empty where none does")
    plan_digest: str
    audit_rows: int


class DecisionMade(BaseModel):
    kind: str
    why: str
    text: str


class Promoted(Detail):
    decision: DecisionMade | None = Field(description="What the check came to; null where another controller was faster")


class QueryOut(BaseModel):
    query: str
    at: str | None
    digest: str
    note: str
    gates: list[str]


class Explanation(BaseModel):
    rollout_id: str
    sentence: str
    gates: list[GateOut]
    queries: list[QueryOut]
    standing: str | None = None
    decision: DecisionOut | None = None
    exposed_requests: int | None = None
    next: str | None = None


class RowOut(BaseModel):
    seq: int
    at: str
    actor: str
    kind: str
    text: str
    event: dict[str, Any] | None = Field(None, description="The whole row, with `evidence=true` or by its number")


class Rows(BaseModel):
    rollout_id: str
    rows: list[RowOut]
    next: int | None = Field(description="`after` of the next page; null on the last one")


class ProblemIn(BaseModel):
    path: str
    line: int | None
    column: int | None
    text: str


class Checked(BaseModel):
    ok: bool
    plan_digest: str | None = None
    kept_for_later: list[str] = Field([], description="Parts that are valid and not acted on by this release")
    problems: list[ProblemIn] = []
    could_start: str | None = Field(None, description="Why it could not start now; null where it could")


class VariantOut(BaseModel):
    model: str
    params: dict[str, Any]


class FlagOut(BaseModel):
    environment: str
    key: str
    version: int
    revision: int
    killed: bool
    weight: int = Field(description="0..100000, thousandths of a percent")
    shadow_weight: int
    salt: str
    unit: str
    control: VariantOut
    candidate: VariantOut
    decision_id: str
    lease: str | None


class Flags(BaseModel):
    environment: str
    revision: int
    flags: list[FlagOut]


class Whoami(BaseModel):
    name: str
    groups: list[str]
    rights: list[str]


class HeadOut(BaseModel):
    head: str | None = Field(description="ID:HASH of the last row; null for an empty log")


class ChainProblem(BaseModel):
    audit_id: int | None
    kind: str
    text: str


class VerifyOut(BaseModel):
    ok: bool
    rows: int
    rollouts: int
    answers: int
    head: str | None
    problem_count: int
    problems: list[ChainProblem]
