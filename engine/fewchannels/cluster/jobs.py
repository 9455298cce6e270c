"""Commands as Ray jobs: sent to a cluster with the files that they read, followed, inspected and stopped."""

import asyncio
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobDetails, JobSubmissionClient

from fewchannels.cluster.own_ray import refused_token, use_token_of_this_machine
from fewchannels.errors import FewchannelsError, InputError, RunConflictError

_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PATIENCE_S = 60.0
_LOOK_EVERY_S = 5.0
_CONNECT_S = 5.0
_MOST_MISSED = 6
_MOST_BYTES = 100 * 2**20  # files that are sent are kept by the cluster's head, and copied to its nodes


@dataclass(frozen=True)
class JobState:
    """State of a job.

    Attributes:
        job_id: submission id of the job.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        command: command that it runs.
        message: Ray's message.
        exit_code: exit code of the command; None if it has not ended on its own.
        started: UTC time, ISO 8601; None before.
        ended: end of the job, in the same format.
    """

    job_id: str
    status: str
    command: str
    message: str
    exit_code: int | None
    started: str | None
    ended: str | None


class Jobs:
    """The jobs of a Ray cluster.

    Args:
        address: address of the cluster's dashboard, such as ``http://HEAD:8265``; None for the value of RAY_ADDRESS, or
            the cluster on this machine.

    Raises:
        InputError: it is not an address.
        FewchannelsError: it cannot be reached.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        _leave_out_proxies()
        if address is not None:
            _check_address(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        if address in (None, "auto") and "RAY_ADDRESS" not in os.environ:
            use_token_of_this_machine()
        with self._translated():
            self._client = JobSubmissionClient(address)

    def submit(self, words: Sequence[str], files: Mapping[str, Path], job_id: str | None = None) -> str:
        """Start a command of ``fewchannels`` on the cluster's head.

        Args:
            words: words of the command, without ``fewchannels``.
            files: files to send along, by their names in the job's working directory; none begins with a dot.
            job_id: id of the job; None for one that Ray generates.

        Returns:
            The job's id.

        Raises:
            InputError: the files are more than 100 MiB.
            RunConflictError: another job has the id.
            FewchannelsError: the cluster refused.
        """
        check_sizes(files)
        with tempfile.TemporaryDirectory() as folder, self._translated():
            environment: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1"}}
            if files:
                for name, path in files.items():
                    shutil.copyfile(path, Path(folder, name))
                # Ray names sent files by content, and deletes them when a job ends, even if another has just started.
                Path(folder, ".job").write_text(secrets.token_hex(8), encoding="utf-8")
                environment["working_dir"] = folder
            return self._submit(shlex.join(["fewchannels", *words]), environment, job_id)

    def _submit(self, command: str, environment: dict[str, Any], job_id: str | None) -> str:
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._client.submit_job(entrypoint=command, runtime_env=environment, submission_id=job_id)
            except RuntimeError as error:
                if job_id is not None and f"{job_id} already exists" in str(error):
                    raise RunConflictError(
                        f"the id {job_id!r} is already used by another job. Give another --id."
                    ) from None
                # A head that has just started answers before it can accept jobs.
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(1)

    def state(self, job_id: str) -> JobState:
        """The state of a job.

        Raises:
            FewchannelsError: there is no such job.
        """
        with self._translated():
            return _state(self._client.get_job_info(job_id))

    def all(self) -> list[JobState]:
        """Every submitted job, the latest first."""
        with self._translated():
            found = [each for each in self._client.list_jobs() if each.submission_id]
        return [_state(each) for each in sorted(found, key=lambda each: -(each.start_time or 0))]

    def log(self, job_id: str) -> str:
        """All output of a job so far.

        Raises:
            FewchannelsError: there is no such job.
        """
        with self._translated():
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, on_text: Callable[[str], None]) -> JobState:
        """Yield a job's output, from its beginning until it has ended.

        Ray's client waits forever for a cluster whose head died at the wrong moment. So it waits in its own thread,
        while this thread checks whether the head is alive.

        Raises:
            FewchannelsError: there is no such job, or the cluster can no longer be reached.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                on_text(text)

        def follow() -> JobState:
            with self._translated():
                asyncio.run(tail())
            return self.state(job_id)

        found: Future[JobState] = Future()
        thread = threading.Thread(target=_settle, args=(found, follow), daemon=True)
        # A proxy may let Ray's client through but not this query, whose failure then means nothing.
        can_be_asked, n_missed = self._answers(), 0
        thread.start()
        while n_missed < _MOST_MISSED:
            thread.join(_LOOK_EVERY_S)
            if not thread.is_alive():
                return found.result()
            if self._answers():
                can_be_asked, n_missed = True, 0
            elif can_be_asked:
                n_missed += 1
        raise FewchannelsError(
            f"the head of {self._where} did not answer {n_missed} times in a row; it may have died. The job's "
            "finished tasks are in its run: once a cluster is up, submit the same command again to resume."
        )

    def _answers(self) -> bool:
        """Return whether the cluster's head reports that it is healthy."""
        url = f"{self._client.get_address()}/api/gcs_healthz"
        try:
            with urlopen(url, timeout=_LOOK_EVERY_S) as answer:  # noqa: S310 - Ray's client has taken the address
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    def stop(self, job_id: str) -> bool:
        """Request that a job stop; returns whether it was running. Finished work is kept.

        Raises:
            FewchannelsError: there is no such job.
        """
        with self._translated():
            return self._client.stop_job(job_id)

    @property
    def _where(self) -> str:
        return f"the cluster at {self._address!r}" if self._address else "a Ray cluster"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        where = self._where
        try:
            yield
        except FewchannelsError:
            raise
        except AuthenticationError:
            raise FewchannelsError(refused_token(where)) from None
        except (ConnectionError, RpcError) as error:
            raise FewchannelsError(
                f"{where} cannot be reached: {str(error).strip()}\nGive --address http://HEAD:8265, the URL of its "
                "dashboard; from outside, ray dashboard cluster.yaml forwards it to http://localhost:8265."
            ) from None
        except (RuntimeError, ValueError) as error:  # raised by Ray's client for an error response
            lines = [line for line in str(error).splitlines() if re.search(r"\w", line)]
            raise FewchannelsError(
                f"{where} refused the request: {lines[-1].strip() if lines else type(error).__name__}"
            ) from None


def _leave_out_proxies() -> None:
    """Reach this machine directly, even if the environment names a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name, ""), *_LOOPBACK)))


def _check_address(address: str) -> None:
    """Refuse invalid addresses, and that of a Ray head where nothing listens, which Ray itself would try for 35 s.

    Raises:
        InputError: it is not an address.
        FewchannelsError: nothing listens there.
    """
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("", "http", "https", "ray") or (port or 0) < (not parts.scheme):
        raise InputError(
            f"{address!r} is not the address of a Ray cluster. Give that of its dashboard, http://HEAD:8265, or of its "
            "head, HEAD:6379."
        )
    if not parts.scheme:
        try:
            socket.create_connection((host, port), _CONNECT_S).close()
        except OSError as error:
            raise FewchannelsError(
                f"{address!r} cannot be reached: {error.strerror or error}. Start the cluster, or give the address "
                "of its dashboard, http://HEAD:8265."
            ) from None


def _settle(found: "Future[JobState]", follow: Callable[[], JobState]) -> None:
    try:
        found.set_result(follow())
    except BaseException as error:  # it is raised again when the result is requested
        found.set_exception(error)


def check_sizes(files: Mapping[str, Path]) -> dict[str, int]:
    """Sizes in bytes of files to be sent with a job.

    Raises:
        InputError: they are more than 100 MiB, or one cannot be read.
    """
    sizes: dict[str, int] = {}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise InputError(f"{str(path)!r} cannot be read, so it cannot be sent with the job.")
        sizes[name] = path.stat().st_size
        if sum(sizes.values()) > _MOST_BYTES:
            raise InputError(
                f"{str(path)!r} and the other files that the command reads are more than {_MOST_BYTES >> 20} MiB, the "
                "limit for a job. Put it where every node of the cluster can read it, and give its "
                "absolute path."
            )
    return sizes


def _state(details: JobDetails) -> JobState:
    def time(milliseconds: int | None) -> str | None:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None

    return JobState(
        job_id=details.submission_id,
        status=str(details.status),
        command=details.entrypoint,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        started=time(details.start_time),
        ended=time(details.end_time),
    )
