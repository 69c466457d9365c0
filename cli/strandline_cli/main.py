"""The `strandline` command. Each command imports what it needs itself, so that `strandline token` stays fast."""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from strandline_cli import names
from strandline_cli.home import AlreadyRunning, Home

if TYPE_CHECKING:
    from strandline_cli.platform import Running


class ImportMode(StrEnum):
    """What happens to a row."""

    INSERT = "insert"
    UPSERT = "upsert"
    REPLACE_SET = "replace-set"


def _namespace(name: str) -> str:
    return _checked(name, names.NAMESPACE)


def _type(name: str) -> str:
    return _checked(name, names.TYPE)


def _types(found: list[str] | None) -> list[str]:
    return [_checked(name, names.TYPE) for name in found or ()]


def _import_id(name: str) -> str:
    return _checked(name, names.IMPORT)


def _checked(name: str, pattern: re.Pattern[str]) -> str:
    """*name* on the command line; empty where it may be left out."""
    try:
        return names.check(name, pattern) if name else name
    except ValueError as failure:
        raise typer.BadParameter(str(failure)) from None


app = typer.Typer(
    help="Strandline on one machine: the real PostgreSQL, NATS and Envoy, for development only. Data, keys and logs "
    "lie in STRANDLINE_HOME (as root /var/lib/strandline, else ~/.local/share/strandline).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
schemas = typer.Typer(help="Work on schemas of types; needs nothing that runs.", no_args_is_help=True)
app.add_typer(schemas, name="schema")


@app.command()
def up(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the edge; 0: any free one.", envvar="STRANDLINE_PORT")
    ] = 8080,
    webhook_receivers: Annotated[
        str,
        typer.Option(
            help="Addresses on loopback that webhooks may reach, for tests: HOST:PORT=CA.PEM[,...].",
            envvar="STRANDLINE_WEBHOOK_RECEIVERS",
            metavar="LIST",
        ),
    ] = "",
) -> None:
    """Start everything and stay in the foreground. Ctrl-C drains and stops it; the data stays."""
    from strandline_cli.console import Console
    from strandline_cli.up import up as run

    raise typer.Exit(run(Home.from_environment(), port, Console(), webhook_receivers))


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Ask every part whether it serves. Exit code 0 only when all of them do."""
    from strandline_cli.status import status as ask

    answer = ask(Home.from_environment())
    if as_json:
        print(json.dumps(answer.as_json(), indent=2))
    else:
        print(f"REST {answer.rest}\ngRPC {answer.grpc}")
        for part in answer.parts:
            print(f"  {part.name:<15} {part.state:<8} {part.pid or '-':>8}  {part.address}")
    raise typer.Exit(0 if answer.is_ready else 1)


@app.command()
def logs(
    part: Annotated[
        str, typer.Argument(help="postgres, nats, user, entity, stream, <service>-sidecar or edge.", show_default=False)
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0)] = 200,
) -> None:
    """Show the end of a part's log."""
    from strandline_cli.process import follow_log, last_lines

    folder = Home.from_environment().logs
    log = folder / f"{part}.log"
    if not log.is_file() or log.parent != folder:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none yet"
        _refuse(f"{f'no log of {part!r} in {folder}' if part else 'say which part'}; there are: {known}")
    for line in last_lines(log, lines):
        print(line)
    if follow:
        follow_log(log)


@app.command()
def down() -> None:
    """Stop the platform that another terminal runs."""
    from strandline_cli.process import stop_supervisor

    home = Home.from_environment()
    pid = home.holder()
    if pid is None:
        print(f"Nothing runs in {home.root}")
    elif not stop_supervisor(home, pid):
        _refuse(f"pid {pid} does not stop. Kill it: kill -9 {pid}")
    else:
        print("Stopped")


@app.command()
def reset(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove all data, keys and logs of the local platform."""
    home = Home.from_environment()
    try:
        with home.hold():
            if not yes:
                typer.confirm(f"Remove everything in {home.root}?", abort=True)
            home.erase()
    except AlreadyRunning as other:
        _refuse(f"Strandline runs in {home.root}, pid {other.pid}. First: strandline down")
    print(f"Removed all data in {home.root}")


@app.command()
def token() -> None:
    """Print a fresh access token of the local administrator, who owns the namespace `demo`."""
    from strandline_cli.api import ApiError
    from strandline_cli.tokens import administrator_token

    home = Home.from_environment()
    state = home.load_state()
    if state is None or home.holder() is None:
        _refuse(f"nothing runs in {home.root}. First: strandline up")
    try:
        print(administrator_token(home, f"http://127.0.0.1:{state.ports.edge}"))
    except (ApiError, OSError) as failure:
        _refuse(f"no token: {failure}. See: strandline status")


@app.command()
def mail(as_json: Annotated[bool, typer.Option("--json", help="One JSON object per mail.")] = False) -> None:
    """Print the mails that the platform sent, newest first. None of them left this machine."""
    from strandline_cli.mail import read

    for message in read(Home.from_environment().mail):
        if as_json:
            print(json.dumps(message))
        else:
            text = message.pop("text")
            print("\n".join(f"{name.title()}: {value}" for name, value in message.items()), "", text, "", sep="\n")


@app.command("import")
def import_(
    namespace: Annotated[str, typer.Argument(callback=_namespace, help="May stand in the plan instead.")] = "",
    file: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False, readable=True)] = None,
    kind: Annotated[
        str, typer.Option("--type", callback=_type, help="Type of rows that do not say it; needed for CSV.")
    ] = "",
    id_column: Annotated[str | None, typer.Option("--id", help="CSV: the column that holds the id.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Write rejected rows here, as JSON lines.")] = None,
    mode: Annotated[
        ImportMode | None, typer.Option(help="replace-set deletes what no row names.", show_default="upsert")
    ] = None,
    replaced_types: Annotated[
        list[str] | None,
        typer.Option("--replace", callback=_types, help="replace-set: a type to replace; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")] = False,
    changes: Annotated[Path | None, typer.Option(help="Dry run: write what would change here, as JSON lines.")] = None,
    import_id: Annotated[str, typer.Option("--import-id", callback=_import_id, help="An id of your own.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the import of that id.")] = False,
    confirm: Annotated[str, typer.Option(help="The operation id of a refused mass change.")] = "",
    plan: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Import what this plan makes of several sources.")
    ] = None,
    review: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Plan: the review file with your decisions.")
    ] = None,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Plan: where its files go.")] = None,
) -> None:
    """Import the rows of a file: JSON lines {"type", "id", "data"} or CSV, also as .xz or .gz; or what a plan makes.

    Exit code 0 when every row was taken, 1 when some were not.
    """
    import uuid

    from strandline_cli.import_command import Files, run_import
    from strandline_cli.importer import Order

    if changes is not None and not dry_run:
        _refuse("--changes tells what a dry run would change: add --dry-run, or leave --changes out", 2)
    if resume and not import_id:
        _refuse("--resume needs the --import-id that the import printed")
    if (file is None) == (plan is None):
        _refuse("say what to import: FILE, or --plan PLAN")
    if plan is not None:
        from strandline_cli.plan_command import PlanRefused, run_plan

        try:
            unified = run_plan(plan, review, out)
        except PlanRefused as failure:
            _refuse(str(failure))
        file, namespace, mode = unified.entities, namespace or unified.namespace, mode or ImportMode(unified.mode)
        if mode == ImportMode.REPLACE_SET and unified.review_count:
            _refuse("replace-set would delete the entities of the rows that are left out: decide about them first")
    if not namespace:
        _refuse("say which namespace")
    assert file is not None
    order = Order(
        namespace=namespace,
        import_id=import_id or uuid.uuid4().hex,
        mode=(mode or ImportMode.UPSERT).value,
        dry_run=dry_run,
        kind=kind,
        replaced_types=replaced_types or (),
        resume=resume,
        confirm=confirm,
    )
    files = Files(source=file, id_column=id_column, rejects=rejects, changes=changes)
    raise typer.Exit(run_import(_running(), order, files))


@app.command()
def export(
    namespace: Annotated[str, typer.Argument(callback=_namespace)],
    file: Annotated[Path, typer.Argument(dir_okay=False)],
    types: Annotated[
        list[str] | None, typer.Option(callback=_types, help="Only entities of these types; may be repeated.")
    ] = None,
    revision: Annotated[int, typer.Option(min=0, help="As it was at this revision; 0: as it is now.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was broken off.")] = False,
) -> None:
    """Write all entities, as they are at one revision, as JSON lines {"type", "id", "data"}, also as .xz or .gz.

    FILE.types holds the types, for `strandline declare`.
    """
    from strandline_cli.export_command import run_export

    raise typer.Exit(run_export(_running(), namespace, file, types=types or (), revision=revision, resume=resume))


@app.command()
def declare(
    namespace: Annotated[str, typer.Argument(callback=_namespace)],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    references: Annotated[
        bool, typer.Option(help="Also the references between types: after the import, if rows refer to later ones.")
    ] = True,
) -> None:
    """Declare the types in a file, as `strandline export` writes it.

    Those that are there already stay as they are, but for references if they have none.
    """
    from strandline_cli.api import ApiError
    from strandline_cli.type_files import TypeFileError, read_types
    from strandline_cli.type_files import declare as declare_types

    try:
        done = declare_types(_running().api(), namespace, read_types(file), references=references)
    except (TypeFileError, ApiError, OSError, UnicodeDecodeError) as failure:
        _refuse(f"{file}: {failure}")
    print(f"declared: {', '.join(done.made) or 'none'}; there already: {', '.join(done.there) or 'none'}")
    if done.referring:
        print(f"references added: {', '.join(done.referring)}")


@app.command()
def watch(
    namespace: Annotated[str, typer.Argument(callback=_namespace)],
    after: Annotated[int | None, typer.Option(min=0, help="Begin after this revision; left out: now.")] = None,
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Begin with all that there is.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Stop where the log was at the beginning.")] = False,
    types: Annotated[
        list[str] | None, typer.Option(callback=_types, help="Only changes of these types; may be repeated.")
    ] = None,
    filter_: Annotated[str, typer.Option("--filter", help="Only entities that match.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The feed's own messages.")] = False,
) -> None:
    """Follow what happens in a namespace, through restarts, until Ctrl-C."""
    if snapshot and after is not None:
        _refuse("--snapshot and --after: one of them")
    import asyncio

    from strandline_client import ApiError, FeedEnded, FeedViolation

    from strandline_cli.watch import run_watch

    running = _running()

    async def follow() -> None:
        async with running.client(patience=None) as client:
            await run_watch(
                client,
                namespace,
                after=after,
                snapshot=snapshot,
                once=once,
                types=types or (),
                filter=filter_,
                as_json=as_json,
                write=_flushed,
                tell=partial(typer.echo, err=True),
            )

    try:
        asyncio.run(follow())
    except (ApiError, FeedEnded, FeedViolation) as failure:
        _refuse(str(failure))


@schemas.command("check")
def check_schema(
    old: Annotated[Path, typer.Argument(help="The schema in force, a file of JSON.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="Its successor.", show_default=False)],
    mode: Annotated[
        str, typer.Option(help="NONE, BACKWARD, FORWARD or FULL, also with _TRANSITIVE.", show_default=True)
    ] = "BACKWARD",
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Take 2020-12 schemas as they are, not closed at the top as types are.")
    ] = False,
) -> None:
    """Say whether one schema may follow another, as the service would, without one.

    Prints {"compatible", "differences": [{"rule", "path", "message"}]}. Exit code 0 when it may, 1 when it may not, 2
    when a file holds no schema.
    """
    from strandline_cli.schema_command import Unreadable, check

    try:
        answer = check(old, new, mode, as_written=as_written)
    except Unreadable as failure:
        print(failure, file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    raise typer.Exit(0 if answer["compatible"] else 1)


@app.command()
def demo() -> None:
    """Write a history while four watchers follow it and parts of the platform are killed. Takes under a minute."""
    import asyncio

    from rich.console import Console

    from strandline_cli.demo import demo as run
    from strandline_cli.demo import verdict

    running = _running()
    held = asyncio.run(run(running, Console()))
    print(f"\n{verdict(held)}")
    raise typer.Exit(0 if held else 1)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


def _running() -> Running:
    """The platform of this home; ends the command when there is none."""
    from strandline_cli.platform import NothingRuns, Running

    try:
        return Running.in_home(Home.from_environment())
    except NothingRuns as failure:
        _refuse(str(failure))


def _flushed(line: str) -> None:
    """Print *line* now, also into a pipe."""
    print(line, flush=True)


def _refuse(text: str, code: int = 1) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(code)
