"""``fewchannels submit``, ``status``, ``logs`` and ``stop``: commands as jobs of a Ray cluster."""

import dataclasses
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels.cli.console import duration, errors, print_json, results, say
from fewchannels.cli.job_command import job_command
from fewchannels.cli.tables import Column, Wide, print_table
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.cluster.jobs import JobState

Address = Annotated[
    str | None,
    typer.Option(
        help="URL of the cluster's dashboard, http://HEAD:8265.",
        show_default="RAY_ADDRESS, or the cluster on this machine",
    ),
]
JobId = Annotated[str, typer.Argument(help="Id of a job, as printed by fewchannels submit or fewchannels status.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("submit", context_settings={"ignore_unknown_options": True})(submit)
    app.command("status")(status)
    app.command("logs")(logs)
    app.command("stop")(stop)


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(help="A fewchannels command and its options, after --.")],
    address: Address = None,
    job_id: Annotated[str | None, typer.Option("--id", help="Id for the job.", show_default="generated")] = None,
    follow: Annotated[bool, typer.Option(help="Print the job's output until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a command as a job of a Ray cluster; it keeps running after you disconnect.

    Local files that the command reads (manifest, settings, adapters) are listed and sent along. The run itself must be
    writable from every node: a URL, or an absolute path on shared storage. With --follow, the exit code is the
    command's.

    Example: fewchannels submit --address http://HEAD:8265 --follow -- capture --manifest m.parquet --out s3://B/RUN
    """
    job = job_command(command, context.find_root().command)
    with errors.status("connecting to the cluster"):
        from fewchannels.cluster.jobs import Jobs, check_sizes

        sizes = check_sizes(job.files)
        jobs = Jobs(address)
    if sizes:
        say(f"sending {', '.join(f'{job.files[name]} ({size(n)})' for name, n in sizes.items())}")
    with errors.status("sending the job"):
        job_id = jobs.submit(job.words, job.files, job_id)
    files = list(map(str, job.files.values()))
    say(f"submitted job {job_id}")
    if not follow:
        if as_json:
            print_json({"job_id": job_id, "files": files})
        else:
            say(f"fewchannels logs {job_id} --follow shows its output; fewchannels stop {job_id} stops it.")
            results.print(job_id)
        return
    _follow(address, job_id, as_json)


def status(
    job_id: Annotated[str | None, typer.Argument(help="Show only this job.", show_default="all jobs")] = None,
    address: Address = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Show the state of the cluster's jobs, latest first.

    Example: fewchannels status --address http://HEAD:8265
    """
    from fewchannels.cluster.jobs import Jobs

    with errors.status("querying the cluster"):
        jobs = Jobs(address)
        found = [jobs.state(job_id)] if job_id else jobs.all()
    if as_json:
        content = [dataclasses.asdict(each) for each in found]
        print_json(content[0] if job_id else content)
        return
    if not found:
        say("No jobs have been submitted to this cluster.")
        return
    rows = []
    for each in found:
        began, ended = (None if text is None else datetime.fromisoformat(text) for text in (each.started, each.ended))
        took = duration((ended - began).total_seconds()) if began and ended else ""
        code = "" if each.exit_code is None else str(each.exit_code)
        rows.append((each.job_id, each.status, code, f"{began:%m-%d %H:%M}" if began else "", took, each.command))
    heads = ("job", "status", "exit", "started, UTC", "took", "command")
    columns = [
        Column(head, cells, folds=head == "command") for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    print_table(columns, wide)
    if job_id and found[0].message:
        say(found[0].message)


def logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Keep printing until the job ends; exit with its exit code.")] = False,
) -> None:
    """Print a job's output.

    Example: fewchannels logs JOB --follow
    """
    from fewchannels.cluster.jobs import Jobs

    if follow:
        _follow(address, job_id, as_json=False)
    else:
        sys.stdout.write(Jobs(address).log(job_id))


def stop(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a job. Finished work is kept; submit the same command again to resume.

    Example: fewchannels stop JOB
    """
    from fewchannels.cluster.jobs import Jobs

    was_running = Jobs(address).stop(job_id)
    if as_json:
        print_json({"job_id": job_id, "was_running": was_running})
    else:
        say(f"job {job_id} {'is being stopped' if was_running else 'had already ended'}")


def _follow(address: str | None, job_id: str, as_json: bool) -> None:
    """Print a job's output on standard error until it ends, then exit with its exit code."""
    from fewchannels.cluster.jobs import Jobs

    jobs = Jobs(address)
    try:
        state: JobState = jobs.follow(job_id, lambda text: errors.out(text, end=""))
    except KeyboardInterrupt:
        say(f"The job keeps running; fewchannels logs {job_id} --follow shows it, fewchannels stop {job_id} stops it.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(dataclasses.asdict(state))
    say(f"job {job_id}: {state.status}{'' if state.exit_code is None else f', exit code {state.exit_code}'}")
    if state.status != "SUCCEEDED":
        raise typer.Exit(state.exit_code or 1)
