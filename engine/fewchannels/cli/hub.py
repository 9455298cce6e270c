"""``fewchannels runs push`` and ``pull``: runs to and from the Hugging Face Hub."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from fewchannels.cli.console import errors, note, print_json, progress_bar, results, say
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.runs.upkeep.contents import Contents
    from fewchannels.runs.upkeep.push import PushPlan

AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]
Name = Annotated[str, typer.Argument(help="Name of the dataset repository on the Hub, OWNER/NAME.", metavar="NAME")]
_LINES_APART_S = 30.0
_MANY_FILES = 100_000


def push(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run, the sweep or the comparison.")],
    repository: Name,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the repository; it does not change that of an existing one.",
            show_default="private if it is new",
        ),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Push also if samples are missing or failed.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only presence and sizes of the run's objects before the upload.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and upload nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a run to a dataset repository on the Hugging Face Hub, with a card. Prompts and images are included.

    The repository is created, private, if there is none. Pushing the same run again uploads only what has changed, and
    resumes what was interrupted; a repository with anything else is refused. The token is that of HF_TOKEN or hf auth
    login.

    Example: fewchannels runs push RUN my-lab/flux-stars
    """
    from fewchannels.runs.storage import open_storage
    from fewchannels.runs.upkeep.hub import Repository

    storage, target = open_storage(run), Repository(repository)
    from fewchannels.runs.upkeep.contents import check_exists, checked  # Zarr, which a wrong name need not wait for
    from fewchannels.runs.upkeep.push import held, plan_push
    from fewchannels.runs.upkeep.push import push as upload

    check_exists(storage)
    target.check_token()
    with held(storage, say):
        with _bar("verifying") as on_progress:
            contents = checked(storage, quick, on_progress)
        if not partial:
            contents.check_complete(run)
        if contents.unfinished:
            note(f"unfinished results are not pushed: {', '.join(contents.unfinished)}")
        with _bar("comparing", of_bytes=True) as on_progress:
            plan = plan_push(storage, contents, target, private, on_progress)
        if len(contents.sizes) > _MANY_FILES:
            note(f"the run has {len(contents.sizes):,} files; the Hub recommends at most {_MANY_FILES:,}")
        is_private = plan.head.is_private if plan.head else private is not False
        say(_planned(run, contents, plan, is_private))
        if not dry_run and not plan.is_up_to_date:
            with _bar("uploading", of_bytes=True) as on_progress:
                upload(storage, plan, is_private=is_private, on_progress=on_progress)
    if as_json:
        print_json(_outcome(contents, plan, is_private, dry_run))
    elif not dry_run:
        results.print(f"{run} is at {target.url} ({_visibility(is_private)}).", soft_wrap=True)
        say(f"Next: fewchannels runs pull {repository} RUN")


def pull(
    repository: Name,
    run: Annotated[str, typer.Argument(help="Folder or URL for the run.")],
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag.", show_default="the latest commit")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and download nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull a run from a dataset repository on the Hugging Face Hub, and verify every byte of it.

    A pull that was interrupted resumes. Nothing in the folder is replaced: a folder with other files, or with other
    contents of the run, is refused.

    Example: fewchannels runs pull my-lab/flux-stars RUN
    """
    from fewchannels.runs.lease import hold
    from fewchannels.runs.storage import open_storage
    from fewchannels.runs.upkeep.hub import Repository

    storage, source = open_storage(run), Repository(repository)
    from fewchannels.runs.upkeep.contents import checked
    from fewchannels.runs.upkeep.pull import check_place, find, plan_pull
    from fewchannels.runs.upkeep.pull import pull as download

    with errors.status("reading the repository"):
        head = find(source, revision)
    check_place(storage, head)
    with nullcontext() if dry_run else hold(storage, say):
        with _bar("comparing", of_bytes=True) as on_progress:
            plan = plan_pull(storage, source, head, on_progress)
        say(
            f"{repository}: {plan.n_files:,} files; to download: {len(plan.sizes):,}, {size(plan.n_bytes)}, of commit "
            f"{head.commit[:12]}"
        )
        outcome: dict[str, object] = {
            "repository": repository,
            "commit": head.commit,
            "n_files": plan.n_files,
            "n_downloaded": len(plan.sizes),
            "n_bytes": plan.n_bytes,
        }
        if not dry_run:
            with _bar("downloading", of_bytes=True) as on_progress:
                download(storage, plan, on_progress)
            with _bar("verifying") as on_progress:
                contents = checked(storage, False, on_progress)
            outcome |= {"kind": contents.kind, "n_done": contents.n_done, "n_items": contents.n_items}
    if as_json:
        print_json(outcome | {"dry_run": dry_run})
    elif not dry_run:
        results.print(f"{run} has {_counted(contents)}; every byte is verified.", soft_wrap=True)
        say(f"Next: fewchannels {'report' if contents.kind == 'comparison' else 'runs show'} {shlex.quote(run)}")


def _planned(run: str, contents: "Contents", plan: "PushPlan", is_private: bool) -> str:
    new = "" if plan.head else "new, "
    whole = f"{run}: {_counted(contents)}, {size(contents.n_bytes)} in {len(contents.sizes):,} files"
    where = f"{plan.repository.name} ({new}{_visibility(is_private)})"
    if plan.is_up_to_date:
        return f"{whole}; {where} has all of it"
    deleted = f"; to delete there: {len(plan.deleted):,}" if plan.deleted else ""
    return f"{whole}; to upload to {where}: {plan.n_files:,}, {size(plan.n_bytes)}{deleted}"


def _counted(contents: "Contents") -> str:
    what = {"run": "samples", "sweep": "items"}.get(contents.kind, "compared samples")
    return f"{contents.n_done:,} of {contents.n_items:,} {what}"


def _visibility(is_private: bool) -> str:
    return "private" if is_private else "public"


def _outcome(contents: "Contents", plan: "PushPlan", is_private: bool, dry_run: bool) -> dict[str, object]:
    return {
        "repository": plan.repository.name,
        "url": plan.repository.url,
        "private": is_private,
        "is_new": plan.head is None,
        "kind": contents.kind,
        "n_done": contents.n_done,
        "n_items": contents.n_items,
        "n_files": len(contents.sizes),
        "n_uploaded": plan.n_files,
        "n_bytes": plan.n_bytes,
        "n_deleted": len(plan.deleted),
        "dry_run": dry_run,
    }


@contextmanager
def _bar(what: str, *, of_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback of what is done and the total; where no bar can be shown, a line is printed every 30 seconds."""
    said = time.monotonic()
    with progress_bar(of_bytes=of_bytes) as bar:
        shown = bar.add_task(what, total=None, rate="")

        def update(done: int, total: int) -> None:
            nonlocal said
            bar.update(shown, completed=done, total=total)
            if not errors.is_terminal and time.monotonic() >= said + _LINES_APART_S:
                said = time.monotonic()
                counted = f"{size(done)} of {size(total)}" if of_bytes else f"{done:,} of {total:,} tasks"
                say(f"{what}: {counted}")

        yield update
