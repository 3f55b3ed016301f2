"""The published conformance suite, with both official clients, against a live server."""

from collections.abc import Iterator

import pytest

from conformance.checks import CHECKS, Server
from conformance.javascript import javascript
from tests.helpers.servers import Running

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def asked(shared_server: Running) -> Iterator[Server]:
    with Server(f"{shared_server.url}/v1", "none", "pocket", "64x64", "1") as server:
        yield server


@pytest.mark.parametrize("check", [*CHECKS, javascript], ids=lambda check: check.__name__)
def test_our_server_keeps_every_promise(check, asked: Server) -> None:
    check(asked)


def test_suite_notices_a_server_that_breaks_promises() -> None:
    """A server that answers everything with an empty object holds none of them."""
    import http.server
    import threading

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as liar:
        threading.Thread(target=liar.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{liar.server_port}/v1"
        with Server(url, "none", "pocket", "64x64", "1") as asked:
            for check in CHECKS:
                with pytest.raises(Exception):  # noqa: B017, PT011
                    check(asked)
        liar.shutdown()
