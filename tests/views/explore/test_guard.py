"""Who may ask the explorer, and what its answers forbid: other origins, other hosts, files that are not its own."""

import shutil
from pathlib import Path
from urllib.parse import urlencode

import pytest
from asked import HOST, Asked

from fewchannels.errors import InputError
from fewchannels.views.explore.server import bind
from fewchannels.views.explore.site import Site

PAGES = ("/", "/run/run", "/_dash-layout", "/_dash-dependencies", "/assets/explorer.js", "/nothing")
FOLLOWED = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
OTHERS = [
    {"Host": "evil.example"},  # a name that resolves to 127.0.0.1
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "127.0.0.1@evil.example"},
    {"Host": "2130706433:8050"},
    {"Host": "0.0.0.0:8050"},
    {"Host": "localhost.:8050"},
    {"Host": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "http://localhost:8050"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    FOLLOWED,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = Path(__file__).parents[2] / "data" / "kept_runs" / "format_2"
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("guarded") / "run"))


@pytest.fixture(scope="module")
def asked(run: Path) -> Asked:
    return Asked([run], Site(8050))


def everything(asked: Asked) -> list[tuple[str, str]]:
    """A request for all that is served, each of which a page of the explorer's own may make."""
    files = ("/picture/run/0.png", "/download/run/answer.csv", "/edit/run/0/0.png")
    gets = [("GET", path) for path in (*PAGES, *map(asked.signed, files))]
    return [*gets, ("HEAD", "/"), ("OPTIONS", "/"), ("POST", "/_dash-update-component")]


def test_its_own_pages_may_ask_under_every_name_of_this_machine(asked: Asked) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]", "LOCALHOST"):
        for port in ("8050", "9000"):  # ssh -L and editors forward another port
            host, cookie = f"{name}:{port}", f"fewchannels-{port}={asked.keys.cookie}"
            own = asked.own | {
                "Host": host,
                "Cookie": cookie,
                "Origin": f"http://{host}",
                "Sec-Fetch-Site": "same-origin",
            }
            for method, path in everything(asked):
                assert asked.ask(path, method, own).status_code != 403, (method, path, host)


def test_without_the_token_nothing_is_answered(asked: Asked) -> None:
    keys = asked.keys
    values = ["", "fewchannels-8050=", f"fewchannels-8050={keys.cookie[:-1]}", f"fewchannels-8050={keys.token}"]
    values += [f"fewchannels-8051={keys.cookie}", f"fewchannels={keys.cookie}", "fewchannels-8050=\u00e9"]
    for value in values:
        for method, path in everything(asked):
            answer = asked.ask(path, method, {"Cookie": value, "X-Fewchannels-Key": keys.page})
            assert answer.status_code == 403, (method, path, value)
            assert method == "HEAD" or "Open the URL that the explorer printed" in answer.text


@pytest.mark.parametrize("token", ["", "x", "\u00e9", "0" * 32])
def test_a_wrong_token_lets_nobody_in(token: str, asked: Asked) -> None:
    answer = asked.ask(f"/?{urlencode({'token': token})}")
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)


def test_the_token_lets_in_and_stands_in_no_address_after_that(asked: Asked) -> None:
    answer = asked.ask(f"/run/run?text=a%20b&token={asked.keys.token}&page=2", headers=FOLLOWED)
    assert answer.status_code == 200
    assert 'data-to="/run/run?text=a%20b&amp;page=2"' in answer.text
    assert asked.keys.token not in answer.text + str(answer.headers)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    cookie, *how = answer.headers["Set-Cookie"].split("; ")
    assert cookie == f"fewchannels-8050={asked.keys.cookie}"
    assert set(how) == {"HttpOnly", "SameSite=Strict", "Path=/"}


def test_a_token_for_one_time_lets_in_one_time(asked: Asked) -> None:
    token = asked.keys.once()
    assert [asked.ask(f"/?token={token}").status_code for _ in range(2)] == [200, 403]


def test_no_address_leads_to_another_host(asked: Asked) -> None:
    entry = asked.ask("/", headers=FOLLOWED | {"Host": HOST})
    assert 'href="/"' in entry.text
    for path in ("///evil.example/", "/\\evil.example/", "/%2f/evil.example"):
        for answer in (asked.ask(f"{path}?token={asked.keys.token}"), asked.ask(path, headers=FOLLOWED)):
            (to,) = (part.split('"')[1] for part in answer.text.split() if part.startswith(("data-to=", "href=")))
            assert to.startswith("/")
            assert not to.startswith(("//", "/\\")), to


@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_others_may_not_ask_though_the_browser_was_let_in(headers: dict[str, str], asked: Asked) -> None:
    for method, path in everything(asked):
        assert asked.ask(path, method, asked.own | headers).status_code == 403, (method, path)
    if "Host" in headers:
        assert asked.ask(f"/?token={asked.keys.token}", headers=headers).status_code == 403


def test_a_cookie_alone_shows_no_data(asked: Asked) -> None:
    """Browsers give it to every server of a host, whatever the port."""
    stolen = {"Cookie": asked.own["Cookie"], "Sec-Fetch-Site": "same-origin", "Origin": f"http://{HOST}"}
    for method, path in (
        ("POST", "/_dash-update-component"),
        ("GET", "/picture/run/0.png"),
        ("GET", "/edit/run/0/0.png"),
        ("GET", "/download/run/answer.csv?sql=select+1"),
    ):
        assert asked.ask(path, method, stolen).status_code == 403
    for secret in (asked.keys.token, asked.keys.page):
        for path in PAGES:
            assert secret not in asked.ask(path, headers=stolen).text


def test_another_question_has_another_signature(asked: Asked) -> None:
    signed = asked.signed("/download/run/answer.csv", {"sql": "select 1 as a"})
    assert asked.ask(signed, headers=asked.own).text == "a\n1\n"
    signature = signed.rpartition("by=")[2]
    for other in (
        signed.replace("answer.csv", "answer.parquet"),
        signed.replace("select+1", "select+2"),
        f"{signed}&sql=select+2",
        f"{signed}&query=",
        f"/download/run/answer.csv?by={signature}",
        "/download/run/answer.csv?sql=select+1+as+a&by=",
    ):
        assert asked.ask(other, headers=asked.own).status_code == 403, other


def test_answers_forbid_what_pages_do_not_need(asked: Asked) -> None:
    for headers in (asked.own, {}):
        answer = asked.ask("/", headers=headers)
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert "unsafe" not in policy["script-src"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/picture/run/99999.png", {}, 404),
        ("/picture/other/0.png", {}, 404),
        ("/edit/run/0/0.png", {}, 404),
        ("/download/run/answer.exe", {}, 404),
        ("/download/run/answer.csv", {"sql": "select content from read_text('/etc/passwd')"}, 400),
        ("/download/run/answer.csv", {"sql": "drop view cells"}, 400),
        ("/download/run/answer.csv", {"query": "nothing"}, 400),
        ("/download/run/answer.csv", {"query": "massive_channels", "p.layer": "x"}, 400),
        ("/assets/..%2f..%2fapp.py", {}, 404),
    ],
)
def test_what_is_not_there_or_not_allowed_is_refused_in_words(
    path: str, query: dict[str, str], expected: int, asked: Asked
) -> None:
    answer = asked.ask(asked.signed(path, query), headers=asked.own)
    assert answer.status_code == expected
    assert "root:x:" not in answer.text
    assert "Traceback" not in answer.text


def test_behind_a_proxy_every_address_has_its_prefix(run: Path) -> None:
    site = Site.of(8050, "https://Hub.example.org:443/user/ann/proxy/8050/")
    assert site.base == "https://hub.example.org/user/ann/proxy/8050/"
    asked = Asked([run], site)
    for host, is_secure in (("hub.example.org", True), (HOST, False)):
        for path in ("/user/ann/proxy/8050/run/run", "/run/run"):  # some proxies take the prefix away
            entry = asked.ask(f"{path}?token={asked.keys.token}", headers={"Host": host})
            assert 'data-to="/user/ann/proxy/8050/run/run"' in entry.text
            cookie, *how = entry.headers["Set-Cookie"].split("; ")
            assert ("Secure" in how, "Path=/user/ann/proxy/8050/" in how) == (is_secure, True)
            origin = f"{'https' if is_secure else 'http'}://{host}"
            own = asked.own | {"Host": host, "Cookie": cookie, "Origin": origin}
            layout = str(asked.ask("/user/ann/proxy/8050/_dash-layout", headers=own).json)
            assert "'/user/ann/proxy/8050/compare'" in layout
            assert asked.ask(asked.signed("/picture/run/0.png"), headers=own).status_code == 200
    for headers in ({"Host": "other.example.org"}, {"Host": "hub.example.org", "Origin": "https://evil.example"}):
        assert asked.ask("/", headers=own | headers).status_code == 403


@pytest.mark.parametrize(
    "url",
    [
        *("", "hub.example.org", "//hub/", "ftp://hub.example.org/", "https://", "https://ann:secret@hub.example.org/"),
        *("https://hub/?a=1", "https://hub/#a", "https://hub:99999/", "https://hub/a b", "https://[::1/"),
        "https://\u00e9/",
    ],
)
def test_what_is_no_address_of_a_proxy_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="Give its scheme, host and path") as refused:
        bind({}, 0, public_url=url)
    assert "secret" not in str(refused.value)


def test_a_port_that_is_taken_is_named(run: Path) -> None:
    bound = bind({}, 0)
    with pytest.raises(InputError, match=f"port {bound.site.port} .* Give another --port"):
        bind({}, bound.site.port)
    bound.server.server_close()
