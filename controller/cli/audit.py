"""The audit log as a whole: that no row was changed, removed or slipped in."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from controller.cli.at_rest import readable
from controller.cli.output import Output, console, print_json
from controller.settings import SettingsError, load

if TYPE_CHECKING:
    from controller.adapters.postgres.chain import Head as KnownHead

audit = App(name="audit", help="The audit log as a whole: verify.")

Head = Annotated[str | None, Parameter(help="A head that was written down elsewhere, ID:HASH; the log must contain it")]


@audit.command
def verify(*, head: Head = None, output: Output = "table") -> int:
    """Follow the hash chain through every row and every raw answer; exit code 1 and the places if anything does not fit."""
    from controller.adapters.postgres import chain
    from controller.wiring import NO_DATABASE

    heads = () if head is None else (_head(head),)
    with readable(load()) as settings:
        if settings.database_url is None:
            raise SettingsError(NO_DATABASE)
        report = chain.verify(settings.database_url, heads)
        if report.ok:
            _say_so(settings.database_url)
    last = None if report.head is None else f"{report.head.id}:{report.head.hash}"
    if output == "json":
        problems = [{"audit_id": p.audit_id, "kind": p.kind, "text": p.text} for p in report.problems]
        counts = {"rows": report.rows, "rollouts": report.rollouts, "answers": report.answers}
        print_json({"ok": report.ok, **counts, "head": last, "problem_count": report.problem_count, "problems": problems})
    else:
        found = "intact" if report.ok else f"{report.problem_count} problems"
        console.print(f"{report.rows} rows of {report.rollouts} rollouts, {report.answers} raw answers: {found}", soft_wrap=True)
        for problem in report.problems:
            where = "" if problem.audit_id is None else f"row {problem.audit_id}: "
            console.print(f"  {problem.kind}: {where}{problem.text}", soft_wrap=True, markup=False)
        if last is not None:
            console.print(f"head {last}", soft_wrap=True, markup=False)
    return 0 if report.ok else 1


def _say_so(url: str) -> None:
    """For the alert that nobody verifies the log. Who may only read cannot say it, and that is no problem of the log."""
    from controller.adapters.postgres import PostgresHeartbeats, open_engine
    from controller.ports import PortError

    with suppress(PortError):
        engine = open_engine(url)
        try:
            PostgresHeartbeats(engine).beat("audit-verify")
        finally:
            engine.dispose()


def _head(text: str) -> "KnownHead":
    from controller.adapters.postgres import chain

    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise SettingsError(f"--head: {text!r} is not ID:HASH as `penstock audit verify` prints it")
    return chain.Head(id=int(number), hash=digest)
