"""Access control of the explorer: browsers that presented its token, and only from the explorer's own pages.

Otherwise, a page of another origin could call a server on 127.0.0.1 through a visitor's browser, and read the responses
if one of its own host names resolves to 127.0.0.1. Each request passes these checks, in order: the host that it names,
the token in its URL, the page that it comes from, the cookie and, for data, the key of the page or a signed address.
"""

import base64
import hashlib
from collections.abc import Collection
from html import escape
from urllib.parse import quote, urlencode

from flask import Flask, Response, request

from fewchannels.views.explore.keys import Keys, same
from fewchannels.views.explore.site import Site

KEY_HEADER = "X-Fewchannels-Key"
_OWN_SITES = (None, "same-origin", "none")
_SIGNED = ("/picture/", "/edit/", "/download/")
_HOW = "Open the URL that the explorer printed when it started; it ends in a token."
_REFUSED = '<!doctype html><html lang="en"><title>fewchannels</title><h1>Access denied</h1><p>{}</p><p>{}</p>{}</html>'
_AGAIN = '<p>If you are signed in and followed a link, <a href="{}">open it from this page</a>.</p>'
# The address bar's entry is replaced, and the page's own navigation sends the cookie: after a redirect from
# another site's link the browser would not send it.
_ENTER = "const d = document.body.dataset; localStorage.setItem(d.name, d.key); location.replace(d.to);"
_ENTRY = (
    '<!doctype html><html lang="en"><title>fewchannels</title><body data-name="{}" data-key="{}" data-to="{}">'
    "<noscript>The explorer needs JavaScript.</noscript><script>" + _ENTER + "</script></body></html>"
)


def guard(server: Flask, site: Site, keys: Keys, script_hashes: Collection[str]) -> None:
    """Refuse requests except from the explorer's own pages, and prevent these from loading anything from elsewhere.

    Args:
        server: server to guard.
        site: addresses of the explorer.
        keys: keys that open it.
        script_hashes: CSP sources of the page's inline scripts, such as ``'sha256-...'``.
    """
    policy = _policy(script_hashes)

    @server.before_request
    def check() -> Response | None:
        if not site.has_host(request.host):
            return _refused(f"The host {request.host!r} does not belong to this server.")
        if request.method == "GET" and keys.opens(request.args.get("token", "")):
            return _entry(site, keys)
        if not _is_own_page(site):
            return _refused("The request comes from a page of another origin.")
        if not same(keys.cookie, request.cookies.get(_cookie_name(site), "")):
            return _refused("This browser has not presented the explorer's token.")
        if request.method not in ("GET", "HEAD") and not same(keys.page, request.headers.get(KEY_HEADER, "")):
            return _refused("The page did not send its key.")
        if request.path.startswith(_SIGNED) and not keys.has_signed(request.path, request.args.items(multi=True)):
            return _refused("This URL is not signed by the explorer, as URLs of images and downloads must be.")
        return None

    @server.after_request
    def dress(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        return response


def _policy(script_hashes: Collection[str]) -> str:
    enter = base64.b64encode(hashlib.sha256(_ENTER.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{enter}' {' '.join(script_hashes)}",
            "style-src 'self' 'unsafe-inline'",  # Plotly and the grid set styles on elements
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


def _is_own_page(site: Site) -> bool:
    origin = request.headers.get("Origin")
    is_own = origin is None or site.has_origin(origin, request.host)
    return is_own and request.headers.get("Sec-Fetch-Site") in _OWN_SITES


def _cookie_name(site: Site) -> str:
    """Name of the cookie, with the port that the browser uses, since browsers share cookies between a host's ports."""
    return f"fewchannels-{site.port_of(request.host)}"


def _here() -> str:
    """The requested address, without a token."""
    kept = [(name, value) for name, value in request.args.items(multi=True) if name != "token"]
    path = f"{request.script_root}/{quote(request.path.lstrip('/'))}"  # two slashes would start another host's URL
    return f"{path}?{urlencode(kept, quote_via=quote)}" if kept else path


def _entry(site: Site, keys: Keys) -> Response:
    """A page that keeps the page's key and then opens what was requested, without the token."""
    values = (f"fewchannels-key{request.script_root}", keys.page, _here())
    response = Response(_ENTRY.format(*map(escape, values)), mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        _cookie_name(site),
        keys.cookie,
        path=f"{request.script_root}/",
        secure=site.is_secure(request.host),
        httponly=True,
        samesite="Strict",
    )
    return response


def _refused(why: str) -> Response:
    is_navigation = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    again = _AGAIN.format(escape(_here())) if is_navigation else ""
    return Response(_REFUSED.format(escape(why), _HOW, again), 403, mimetype="text/html")
