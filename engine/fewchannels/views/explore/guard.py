"""Who may ask the explorer: this machine's own browser, at the explorer's own address, and nobody through it.

A page of another origin could otherwise call a server on 127.0.0.1 through the browser of whoever visits it, and read
the answers where a name of its own resolves to 127.0.0.1.
"""

from collections.abc import Collection

from flask import Flask, Response, abort, request

_OWN_SITES = (None, "same-origin", "none")


def guard(server: Flask, hosts: Collection[str], script_hashes: Collection[str]) -> None:
    """Refuse what is not asked by the explorer's own pages, and let those load nothing from elsewhere.

    Args:
        server: to guard.
        hosts: ``host:port`` of every address that it is reached at.
        script_hashes: CSP sources of the page's inline scripts, such as ``'sha256-...'``.
    """
    origins = {f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")}
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {' '.join(script_hashes)}",
            "style-src 'self' 'unsafe-inline'",  # Plotly and the grid set styles on elements
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )

    @server.before_request
    def check() -> None:
        if request.host not in hosts:
            abort(403, f"The host {request.host!r} is not this server's; open http://{sorted(hosts)[0]}/.")
        if request.headers.get("Origin") not in (None, *origins):
            abort(403, "Pages of other origins may not ask this server.")
        # A link from elsewhere may be followed; nothing else of another site's may be answered.
        if request.headers.get("Sec-Fetch-Site") not in _OWN_SITES and not _is_followed_link():
            abort(403, "Pages of other origins may not ask this server.")

    @server.after_request
    def dress(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        return response


def _is_followed_link() -> bool:
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
        and not request.path.startswith("/download")
    )
