"""A dataset repository on the Hugging Face Hub: its files, commits to it, downloads from it, and plain errors.

The Hub's client transfers the bytes, retries requests after temporary errors, and finds the token (``HF_TOKEN``, or the
one that ``hf auth login`` stored) and the server (``HF_ENDPOINT``). Nothing here prints or keeps the token.
"""

import errno
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewchannels.errors import FewchannelsError, InputError, RunConflictError, StorageError, without_secrets
from fewchannels.runs.storage import Storage, is_key

CARD = "README.md"
_KIND = "dataset"
_READ_BYTES = 2**22
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE)
_LOGIN = "set HF_TOKEN, or run: hf auth login"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a commit.

    Attributes:
        n_bytes: size of the file.
        sha256: digest of a large file's bytes; None for a small file, which git stores itself.
        blob: git's hash of a small file's bytes.
    """

    n_bytes: int
    sha256: str | None
    blob: str

    def is_same(self, storage: Storage, key: str, n_bytes: int) -> bool:
        """Return whether an object has the file's bytes; it is read only if the sizes are equal.

        Args:
            storage: storage of the object.
            key: key of the object.
            n_bytes: size of the file.
        """
        if n_bytes != self.n_bytes:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
        with storage.open(key) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
        return digest.hexdigest() == (self.sha256 or self.blob)


@dataclass(frozen=True)
class Head:
    """Current state of a repository.

    Attributes:
        commit: latest commit.
        is_private: whether only its owner sees it.
        files: files by path, without paths that could lead outside a folder.
    """

    commit: str
    is_private: bool
    files: Mapping[str, HubFile]


class Repository:
    """A dataset repository, by its name ``owner/name``, whether or not it exists.

    Args:
        name: the name.

    Raises:
        InputError: it is not such a name.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".", "-")):
            raise InputError(
                f"{name[:120]!r} is not the name of a repository on the Hub: it is OWNER/NAME, of letters, digits, "
                "'-', '_' and '.', such as my-lab/flux-stars."
            )
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars

        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()  # commands show one of their own
        self.name = name
        self._api = HfApi(library_name="fewchannels")

    @property
    def url(self) -> str:
        """URL of its page."""
        return f"{self._api.endpoint}/datasets/{self.name}"

    def check_token(self) -> None:
        """Reject work that needs a token if there is none. Sends nothing.

        Raises:
            InputError: there is no token.
        """
        from huggingface_hub import get_token

        if not get_token():
            raise InputError(
                f"uploading to {self.name} needs a token of the Hugging Face Hub with write access, and there is none. "
                f"Create one in the settings of your account, then {_LOGIN}."
            )

    def head(self, revision: str | None = None) -> Head | None:
        """A commit and all of its files; None if there is no such repository, or if it is not visible.

        Args:
            revision: a commit, a branch or a tag; None takes the latest commit.

        Raises:
            InputError: the token is rejected, or the client is offline.
            StorageError: the Hub cannot be reached, or fails.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._told("read"):
            try:
                about = self._api.dataset_info(self.name, revision=revision)
            except RepositoryNotFoundError:
                return None
            except RevisionNotFoundError:
                raise InputError(f"{self.name} has no revision {revision!r}; its page lists them: {self.url}") from None
            tree = self._api.list_repo_tree(self.name, recursive=True, revision=about.sha, repo_type=_KIND)
            files = {
                each.path: HubFile(each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
                for each in tree
                if isinstance(each, RepoFile) and is_key(each.path)
            }
        return Head(str(about.sha), bool(about.private), files)

    def create(self, is_private: bool) -> None:
        """Create it. Safe to repeat."""
        with self._told("create"):
            self._api.create_repo(self.name, private=is_private, repo_type=_KIND, exist_ok=True)

    def commit(self, message: str, added: Mapping[str, Path | bytes], deleted: Iterable[str], parent: str) -> str:
        """Upload files in one commit; returns the commit.

        Args:
            message: first line of the commit message.
            added: files or bytes, by path in the repository.
            deleted: paths to delete.
            parent: the commit that it follows.

        Raises:
            RunConflictError: another commit came in between.
            InputError: the token is rejected, or the client is offline.
            StorageError: the Hub cannot be reached, or fails.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in added.items()]
        operations += [CommitOperationDelete(path, is_folder=False) for path in deleted]
        with self._told("write"):
            made = self._api.create_commit(
                self.name, operations, commit_message=message, repo_type=_KIND, parent_commit=parent
            )
        return made.oid

    def download(self, path: str, commit: str, folder: Path) -> Path:
        """Download a file of a commit into a folder, resuming an earlier download; returns its path. Safe to repeat.

        Raises:
            InputError: the token is rejected, or the client is offline.
            StorageError: the Hub cannot be reached, or fails.
        """
        with self._told("read"):
            return Path(
                self._api.hf_hub_download(self.name, path, repo_type=_KIND, revision=commit, local_dir=str(folder))
            )

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Convert the client's exceptions to errors with a remedy."""
        from huggingface_hub.errors import HTTPError

        try:
            yield
        except FewchannelsError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            raise self._explained(verb, error) from None

    def _explained(self, verb: str, error: BaseException) -> FewchannelsError:
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        causes = list(_causes(error))
        if any(isinstance(each, OfflineModeIsEnabled) for each in causes):
            return InputError(f"HF_HUB_OFFLINE is set, so {self.name} cannot be reached. Unset it, then run again.")
        local = [each for each in causes if isinstance(each, OSError) and each.errno in _OF_THIS_MACHINE]
        if local:
            return StorageError(
                f"cannot keep what was downloaded of {self.name}: {local[0].strerror}. Fix this, then run the same "
                "command again to resume."
            )
        answer = next((each for each in causes if isinstance(each, HfHubHTTPError)), None)
        status = answer.response.status_code if answer else 0
        reason = _reason(answer or causes[-1])
        if status in (401, 403):
            needed = "read" if verb == "read" else "write to"
            return InputError(
                f"the Hub refused to {verb} {self.name} ({status}): {reason}. Use a token that may {needed} "
                f"it: {_LOGIN}."
            )
        if status == 404:
            return InputError(
                f"there is no dataset {self.name} on {self._api.endpoint}, or the token may not read it. Check the "
                f"name; for a private one, {_LOGIN}."
            )
        if status in (409, 412):
            return RunConflictError(
                f"another commit to {self.name} came in between ({status}). Run the same command again: it uploads "
                "what is missing."
            )
        if status:
            return StorageError(
                f"the Hub failed to {verb} {self.name} ({status}): {reason}. What has arrived is kept; run the same "
                "command again to resume."
            )
        return StorageError(
            f"cannot {verb} {self.name} on {self._api.endpoint}: {reason}. Check the network; what has arrived is "
            "kept, and the same command resumes."
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and the chain of its causes; the client wraps a response of the Hub several times."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """One line about an exception, with any token removed."""
    from huggingface_hub import get_token

    said = getattr(error, "server_message", None) or next(iter(str(error).strip().splitlines()), "")
    text = without_secrets(said.strip().rstrip(".")[:300]) or type(error).__name__
    token = get_token()
    return text.replace(token, "...") if token else text
