"""The same plays in a bucket: their client is killed, or refused, at the n-th request that changes something."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import s3_server as s3

from crash_points import How
from crash_points.stage import Stage

KINDS = {
    How.KILL_BEFORE: s3.KILL_BEFORE,
    How.KILL_AFTER: s3.KILL_AFTER,
    How.REFUSE: s3.SLOW_DOWN,  # once, so that it is sent again
    How.FULL: s3.ERROR,
}


class BucketStage(Stage):
    """A stage whose place is below a prefix of a bucket, and copied to a folder when it is looked at."""

    def __init__(self, folder: Path, model: Path, server: s3.S3Server) -> None:
        waits = {"CRASH_BEAT_S": "0.3", "FEWCHANNELS_RETRY_S": "1.5"}
        super().__init__(folder, model, None, server.environment | waits)
        self.url = f"s3://{s3.BUCKET}/place"
        self._server, self._client = server, server.client()

    def run(self, arguments: Sequence[str], at: int = 0, how: How = How.NOTHING) -> tuple[int, list[str]]:
        """As :meth:`Stage.run`; the calls are requests."""
        self._server.strike(at, KINDS.get(how, ""), self.forks.kill)
        code = self.forks.run(arguments)
        calls = self._server.changes
        self._server.strike()
        self._fetch()
        return code, calls

    def put(self, name: str) -> None:
        """As :meth:`Stage.put`."""
        super().put(name)
        self._client.delete_objects(
            Bucket=s3.BUCKET,
            Delete={"Objects": [{"Key": key} for key in self._server.keys("place/")] or [{"Key": "-"}]},
        )
        for path in sorted(self.place.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                key = f"place/{path.relative_to(self.place).as_posix()}"
                self._client.put_object(Bucket=s3.BUCKET, Key=key, Body=path.read_bytes())

    def _fetch(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        for key in self._server.keys("place/"):
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._server.read(key))
