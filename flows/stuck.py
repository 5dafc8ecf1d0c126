"""
Gate-check runs that claim to be running although their process is gone.

Prefect leaves a run RUNNING for ever when its worker and its process die together, and nobody adopts it. Its one rule: only our own
runs, only after a time in which any gate check has ended.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed
from prefect.types import DateTime

LONGEST = timedelta(minutes=10)
"""A gate check that has run for so long is taken for dead. A hundred rollouts take seconds."""


def crash_own(client: SyncPrefectClient, this_run: UUID, now: datetime | None = None) -> int:
    """
    Args:
        client: Of the Prefect API.
        this_run: The run that asks; it is left alone.
        now: For tests.

    Returns:
        How many runs were marked as crashed.
    """
    before = (now or datetime.now(UTC)) - LONGEST
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["gate-check"])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
            start_time=FlowRunFilterStartTime(before_=DateTime.fromtimestamp(before.timestamp(), UTC)),
        ),
    )
    dead = [run for run in runs if run.id != this_run]
    for run in dead:
        text = f"still RUNNING after {LONGEST}: its process is gone"
        client.set_flow_run_state(run.id, Crashed(message=text), force=True)
    return len(dead)
