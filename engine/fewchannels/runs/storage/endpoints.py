"""Settings of object stores in the environment, checked before use, and responses that did not come from a store."""

import os
import re
from urllib.parse import urlsplit

from fewchannels.errors import InputError, StorageError, without_secrets

_ENDPOINT = re.compile(r"(AWS|AZURE|GOOGLE)_(STORAGE_)?(ENDPOINT(_URL)?(_S3)?|BASE_URL)", re.IGNORECASE)
_OF_SCHEME = {"s3": "AWS", "az": "AZURE", "gs": "GOOGLE"}
_ON = ("true", "1", "yes", "on")
_HINTS = (
    ("NoSuchBucket", "Create the bucket, or correct its name."),
    ("ExpiredToken", "Get new credentials: AWS_SESSION_TOKEN and its keys are no longer valid."),
    ("InvalidAccessKeyId", "Check AWS_ACCESS_KEY_ID, and which store AWS_ENDPOINT_URL names."),
    ("SignatureDoesNotMatch", "Check AWS_SECRET_ACCESS_KEY."),
    ("RequestTimeTooSkewed", "Correct this machine's clock."),
    ("AccessDenied", "Check that these credentials may read and write there."),
    ("169.254.169.254", "No credentials are set, and this machine has no role: set AWS_ACCESS_KEY_ID and its secret."),
    ("redirect without LOCATION", "Check AWS_REGION and AWS_ENDPOINT_URL."),
    ("invalid list response", "The server there is not an object store; it may be the network's login page."),
)


def allows_http() -> bool:
    """Return whether the environment allows requests without encryption."""
    return any(os.environ.get(f"{name}_ALLOW_HTTP", "").lower() in _ON for name in _OF_SCHEME.values())


def check_endpoint(scheme: str) -> None:
    """Refuse an endpoint that cannot work and for which the client has no clear error.

    Args:
        scheme: scheme of the run's URL.

    Raises:
        InputError: naming the variable of the environment.
    """
    for name, value in os.environ.items():
        if not _ENDPOINT.fullmatch(name) or not name.upper().startswith(_OF_SCHEME[scheme]) or not value:
            continue
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is not a number
            is_url = False
        if not is_url or re.search(r"\s", value):
            raise InputError(f"{name} is {without_secrets(value)!r}; it must be a URL such as https://HOST:PORT.")
        if parts.scheme == "http" and not allows_http():
            raise InputError(
                f"{name} is {without_secrets(value)!r}, which is not encrypted. Give an https:// URL, or set "
                f"{_OF_SCHEME[scheme]}_ALLOW_HTTP=true."
            )


def hint(text: str) -> str:
    """Remedy for a store's error, one sentence; empty if unknown."""
    return next((remedy for sign, remedy in _HINTS if sign in text), "")


def check_is_store(url: str, key: str, data: bytes) -> None:
    """Refuse a web page in place of an object: some networks answer any request with their login page.

    Raises:
        StorageError: it is one.
    """
    if not key.endswith(".html") and re.match(rb"\s*<(!doctype\s+html|html)", data[:64], re.IGNORECASE):
        raise StorageError(
            f"cannot read {key!r} in {url!r}: the response is a web page, so the server is not an object store. Log "
            "in to the network if required, or check AWS_ENDPOINT_URL."
        )
