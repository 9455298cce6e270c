"""Requirements of a local Ray instance: a folder for its sockets, a token, and a user with a name."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from fewchannels import machine
from fewchannels.errors import InputError

_FOLDER, _TOKEN, _MODE = "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"
_LONGEST_SOCKET = 107  # bytes of the path of a socket on Linux


@contextmanager
def settled() -> Iterator[None]:
    """Set the environment in which this command starts its own Ray, while the context lasts.

    Ray would write a token to ``~/.ray``, where every later ``ray start`` of this user would find and require it. A
    token that is only in the environment of Ray's processes ends with them, and needs no home folder.

    Raises:
        InputError: there is no folder in which Ray can start.
    """
    before = {name: os.environ.get(name) for name in (_FOLDER, _TOKEN, _MODE)}
    machine.name_user()
    os.environ.update(_folder())
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ[_TOKEN] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")  # Ray caches the mode from the environment


def use_token_of_this_machine() -> None:
    """Use the token that ``ray start`` found, for a cluster on this machine, by the same search as Ray."""
    if _MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[_MODE] = "token"
        Config.initialize("")


def refused_token(where: str) -> str:
    """Message about the token of a cluster that rejected this command, with the remedy.

    Args:
        where: name of the cluster in the message.
    """
    if os.environ.get(_MODE, "").lower() != "token":
        what = f"requires a token, and none is sent without {_MODE}=token"
    elif AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        what = "has a different token than this command"
    else:
        what = "requires a token, and none is set here"
    return (
        f"{where} {what}.\nSet {_MODE}=token, and give the token of its head in {_TOKEN} or in ~/.ray/auth_token "
        "(on the head: ray get-auth-token)."
    )


def _folder() -> dict[str, str]:
    """Ray's folder, as a variable of the environment; empty if its own choice works."""
    if not (why := _unusable(Path(get_default_ray_temp_dir()))):
        return {}
    if named := os.environ.get(_FOLDER):
        raise InputError(f"{_FOLDER} is {named!r}, where Ray cannot start: {why}. Set it to a short path that you own.")
    own = Path("/tmp", f"fewchannels-ray-{os.getuid()}")  # noqa: S108 - its owner is checked
    try:
        own.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"Ray cannot start: {why}, nor {str(own)!r}: {error.strerror}. Set {_FOLDER}.") from None
    is_own = own.is_dir() and not own.is_symlink() and own.stat().st_uid == os.getuid()
    if not is_own or _unusable(own / "ray"):
        raise InputError(
            f"Ray cannot start: {why}, and {str(own)!r} belongs to another user. Set {_FOLDER} to a short path that "
            "you own."
        )
    return {_FOLDER: str(own)}


def _unusable(folder: Path) -> str:
    """The reason why Ray cannot use this folder; empty if it can."""
    socket = folder / f"session_2000-01-01_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        return f"{str(folder)!r} is too long a path for its sockets"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{str(there)!r} is not writable for this user"
    return ""
