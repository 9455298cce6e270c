"""Who may ask the explorer, and what its answers forbid: other origins, other hosts, files that are not its own."""

import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser import Watched, chromium, needs_chromium, served
from werkzeug.test import Client

from fewchannels.errors import InputError
from fewchannels.views.explore.app import make_app
from fewchannels.views.explore.opened import open_places
from fewchannels.views.explore.server import bind

HOST = "127.0.0.1:8050"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = Path(__file__).parents[1] / "data" / "kept_runs" / "format_2"
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("guarded") / "run"))


@pytest.fixture(scope="module")
def client(run: Path) -> Client:
    return Client(make_app(open_places([str(run)]), [HOST, "localhost:8050"]).server)


def status(client: Client, path: str = "/", **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get(path, headers={"Host": HOST} | given).status_code


def test_its_own_pages_may_ask(client: Client) -> None:
    assert status(client) == 200
    assert status(client, Host="localhost:8050") == 200
    assert status(client, "/_dash-layout", Origin=f"http://{HOST}", Sec_Fetch_Site="same-origin") == 200
    assert status(client, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that resolves to 127.0.0.1
        {"Host": "127.0.0.1:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    ],
)
def test_others_may_not(headers: dict[str, str], client: Client) -> None:
    for path in ("/", "/_dash-layout", "/picture/run/0.png", "/download/run/answer.csv"):
        assert status(client, path, **headers) == 403
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = client.post("/_dash-update-component", json={}, headers={"Host": HOST} | named)
    assert asked.status_code == 403


def test_a_link_elsewhere_starts_no_download(client: Client) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert status(client, "/download/run/answer.csv", **followed) == 403


def test_answers_forbid_what_pages_do_not_need(client: Client) -> None:
    answer = client.get("/", headers={"Host": HOST})
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/picture/run/99999.png", 404),
        ("/picture/other/0.png", 404),
        ("/edit/run/0/0.png", 404),
        ("/download/run/answer.exe", 404),
        ("/download/run/answer.csv?sql=select content from read_text('/etc/passwd')", 400),
        ("/download/run/answer.csv?sql=drop view cells", 400),
        ("/download/run/answer.csv?query=nothing", 400),
        ("/download/run/answer.csv?query=massive_channels&p.layer=x", 400),
        ("/assets/..%2f..%2fapp.py", 404),
    ],
)
def test_what_is_not_there_or_not_allowed_is_refused_in_words(path: str, expected: int, client: Client) -> None:
    answer = client.get(path, headers={"Host": HOST})
    assert answer.status_code == expected
    assert "root:x:" not in answer.text
    assert "Traceback" not in answer.text


def test_a_port_that_is_taken_is_named(run: Path) -> None:
    server, address = bind({}, 0)
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"port {port} .* Give another --port"):
        bind({}, port)
    server.server_close()


class _Evil(BaseHTTPRequestHandler):
    page = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *arguments: object) -> None:
        pass


@needs_chromium
def test_a_page_of_another_origin_reads_and_shows_nothing(run: Path) -> None:
    server, address = bind(open_places([str(run)]), 0)
    _Evil.page = f"""<body><script>
        window.seen = [];
        const tell = what => window.seen.push(what);
        Promise.allSettled([
          fetch("{address}_dash-layout").then(r => r.text()).then(t => tell("read " + t)),
          fetch("{address}picture/run/0.png", {{mode: "no-cors"}}).then(() => tell("answered")),
          new Promise((good, bad) => {{ const i = new Image(); i.onload = () => good(tell("drawn")); i.onerror = bad;
            i.src = "{address}picture/run/0.png"; }}),
        ]).then(() => window.seen.push("end"));
      </script><iframe src="{address}"></iframe></body>""".encode()
    evil = HTTPServer(("127.0.0.1", 0), _Evil)
    Thread(target=evil.serve_forever, daemon=True).start()
    with served(server), chromium() as browser:
        own = Watched(browser, address)
        assert own.page.goto(f"{address}picture/run/0.png").status == 200
        other = Watched(browser, address)
        other.page.goto(f"http://127.0.0.1:{evil.server_port}/")
        other.page.wait_for_function("window.seen.includes('end')")
        assert other.page.evaluate("window.seen") == ["end"]
        assert "fewchannels" not in (other.page.frames[1].content() if len(other.page.frames) > 1 else "")
    evil.shutdown()
