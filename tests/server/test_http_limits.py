"""What strangers send to a real server: heads, bodies and connections without end, slow ones."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx2
import psutil
import pytest

from filmlet.api.middleware import BODY_LIMITS
from filmlet.jobs.database import Database
from filmlet.server.protocol import HEAD_TIMEOUT_S, MAX_HEAD_BYTES, MAX_HEADERS
from filmlet.settings import Settings
from tests.helpers.servers import SMALL, Running, make_servers, refusal, wait_until

pytestmark = pytest.mark.server

PROMPTLY_S = 5.0


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A web process alone, for every test that attacks it."""
    starts = make_servers()
    settings = Settings(
        home=tmp_path_factory.mktemp("web"), max_per_minute=10**6, max_active=10**6,
        max_queued=10**6, max_connections=100, max_connections_per_address=60,
        forwarded_allow_ips="192.0.2.1",  # else loopback is a proxy's, and shared by many
    )  # fmt: skip
    yield next(starts)(settings, "--no-worker")
    next(starts, None)


def address(server: Running) -> tuple[str, int]:
    url = httpx2.URL(server.url)
    assert url.port
    return url.host, url.port


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(address(server), timeout=60) as connection:
        yield connection


@contextmanager
def many_connected(server: Running, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected(server)) for _ in range(count)]


def exchange(server: Running, sent: bytes) -> tuple[int, dict[str, str]]:
    """Send bytes as they are; the status, and the error of the answer."""
    with connected(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            connection.sendall(sent)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), dict(json.loads(body)["error"])


def head(*lines: str, target: str = "/health", host: str = "localhost") -> bytes:
    first = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def answers_promptly(server: Running) -> None:
    started = time.monotonic()
    assert httpx2.get(f"{server.url}/health", timeout=30).status_code == 200
    assert time.monotonic() - started < PROMPTLY_S


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (head("X-Long: " + "a" * 40_000_000), 431, "head_too_large"),
        (head(*(f"X-{n}: a" for n in range(MAX_HEADERS + 1))), 431, "head_too_large"),
        (head(target="/" + "a" * (MAX_HEAD_BYTES + 1)), 431, "head_too_large"),
        (head("X-Half: a")[:-4], 408, "too_slow"),
        (head(target="http://other.example/health"), 400, "bad_target"),
        (head("Host: other.example"), 400, "bad_host"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "bad_host"),
        (b"\x16\x03\x01\x02\x00\x01" + bytes(100), 400, "bad_request"),
    ],
    ids=["header", "headers", "target", "half", "absolute", "hosts", "no host", "tls"],
)
def test_head_out_of_bounds_is_refused_before_it_is_kept(
    web: Running, sent: bytes, status: int, code: str
) -> None:
    process = psutil.Process(web.process.pid)
    before, started = process.memory_info().rss, time.monotonic()
    got, error = exchange(web, sent)
    assert (got, error["code"]) == (status, code)
    assert process.memory_info().rss - before < 50e6
    assert time.monotonic() - started < HEAD_TIMEOUT_S + 2 * PROMPTLY_S
    answers_promptly(web)


def test_usual_head_is_taken_in_pieces_and_requests_one_after_the_other(web: Running) -> None:
    with connected(web) as connection:
        for _ in range(3):
            sent = head(*(f"X-{n}: {'a' * 200}" for n in range(40))).replace(b": close", b": on")
            for place in range(0, len(sent), 1000):
                connection.sendall(sent[place : place + 1000])
            answer = b""
            while b'"version"' not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


def test_half_open_connections_keep_nobody_out(web: Running) -> None:
    with many_connected(web, 300) as half_open:
        for connection in half_open:
            with suppress(OSError):  # closed for a later one
                connection.send(b"GET / HTTP/1.1\r\nHost: loc")
        for _ in range(5):
            answers_promptly(web)
        open_now = psutil.Process(web.process.pid).net_connections("tcp")
        assert sum(c.status == "ESTABLISHED" for c in open_now) <= 61


def test_body_that_trickles_is_ended(web: Running) -> None:
    with connected(web) as connection:
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(1.0):
                try:
                    connection.send(b" ")
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        finally:
            stop.set()
            sender.join()
    answers_promptly(web)


def test_client_that_leaves_in_its_body_leaves_no_trace(web: Running) -> None:
    already = len(web.log)
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        for path in ("/v1/videos", "/v1/videos/plan", "/session"):
            with connected(web) as connection:
                connection.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                    "Content-Length: 1000\r\n\r\n--x\r\n".encode()
                )
    answers_promptly(web)
    exchange(web, b"nonsense\r\n\r\n")  # is logged after whatever these have left
    said = "".join(web.log[already:])
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/extensions", "/session", "/v1/other"])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_large_body_is_refused_in_the_envelope(web: Running, path: str, is_chunked: bool) -> None:
    most = next(most for pattern, most in BODY_LIMITS if pattern.fullmatch(path))
    process = psutil.Process(web.process.pid)
    before = process.memory_info().rss

    def pieces() -> Iterator[bytes]:
        for _ in range(most // 2**20 + 2):
            yield b"[" * 2**20

    headers = {"content-type": "application/json"}
    if not is_chunked:
        headers["content-length"] = str((most // 2**20 + 2) * 2**20)
    answer = web.client.post(path, content=pieces(), headers=headers)
    if path == "/v1/other":
        assert answer.status_code in (404, 413)
    else:
        assert answer.status_code == 413
        assert refusal(answer)["code"] == "too_large"
    assert process.memory_info().rss - before < 300e6
    answers_promptly(web)


def test_json_of_many_small_values_costs_no_memory(web: Running) -> None:
    process = psutil.Process(web.process.pid)
    before, started = process.memory_info().rss, time.monotonic()
    for body in (b'{"prompt":[' + b"{}," * 10_000_000 + b"1]}", b'{"a":' * 5_000_000):
        answer = web.client.post("/v1/videos", content=body)
        assert answer.status_code == 400
        assert refusal(answer)["param"] == "body"
    assert process.memory_info().rss - before < 300e6
    assert time.monotonic() - started < 4 * PROMPTLY_S


def test_large_bodies_of_many_requests_are_bounded_together(web: Running) -> None:
    process = psutil.Process(web.process.pid)
    before = process.memory_info().rss
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n"
    with many_connected(web, 14) as busy:
        for connection in busy:
            connection.sendall(head)
            with suppress(OSError):
                connection.sendall(b" " * 49_000_000)
        assert busy[-1].recv(4096).startswith(b"HTTP/1.1 503")
        assert web.client.post("/v1/videos", json=SMALL).status_code == 200
        assert process.memory_info().rss - before < 900e6

    def takes_large() -> bool:
        answer = web.client.post("/v1/videos", content=b" " * 50_000_000)
        return answer.status_code == 400

    wait_until(takes_large, 30)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " ".join(f"xq{n:05d}z" for n in range(3_500))},
        {"prompt": "q" * 32_000},
        {"prompt": "a", "extra_prompts": ["q w " * 250] * 31},
        {"prompt": "a", "extra_prompts": ["q" * 32_000] * 31},
        {"prompt": "\U0001f600" * 32_000},
    ],
    ids=["unknown words", "one word", "many prompts", "too long", "emoji"],
)
def test_no_text_holds_the_server(web: Running, fields: dict[str, object]) -> None:
    done = threading.Event()

    def ask() -> None:
        answer = httpx2.post(f"{web.url}/v1/videos/plan", json=fields, timeout=60)
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            assert len(answer.json()["unknown_words"]) <= 20
            assert all(len(word) <= 40 for word in answer.json()["unknown_words"])
        done.set()

    asking = threading.Thread(target=ask)
    started = time.monotonic()
    asking.start()
    answers_promptly(web)
    asking.join()
    assert done.is_set()
    assert time.monotonic() - started < 2 * PROMPTLY_S


def test_one_caller_cannot_take_every_thread_for_plans(web: Running) -> None:
    fields = {"prompt": "a", "extra_prompts": ["q w " * 250] * 31}
    statuses: list[int] = []

    def ask() -> None:
        answer = httpx2.post(f"{web.url}/v1/videos/plan", json=fields, timeout=60)
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert answer.headers["retry-after"]

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    answers_promptly(web)
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429}
    assert len(statuses) == 40


NUMBERS = (
    ("frames", int("9" * 400)), ("steps", int("9" * 400)), ("seed", int("9" * 400)),
    ("frames", "9" * 5000), ("seconds", 1e308), ("seconds", "1e308"), ("seconds", "inf"),
    ("seconds", "nan"), ("seconds", "-0.0"), ("seconds", int("9" * 400)), ("fps", 1e-310),
    ("fps", "1e-320"), ("fps", "inf"), ("guidance", "nan"), ("guidance", 1e308),
    ("size", "9" * 5000 + "x64"), ("size", "9" * 400 + "x" + "9" * 400), ("steps", 1e308),
    ("steps", [1]), ("frames", {"a": 1}), ("seed", 2**63), ("seconds", True),
    ("steps", 10**9), ("frames", 10**9), ("loras", [{"source": "a/b", "strength": 1e308}]),
    ("loras", [{"source": "a/b", "strength": "nan"}]), ("loras", ["a/b:nan"]),
    ("loras", ["a/b:" + "9" * 5000]), ("model", "a" * 10**6), ("loras", ["a/\x00b"]),
)  # fmt: skip


@pytest.mark.parametrize(("field", "value"), NUMBERS, ids=range(len(NUMBERS)))
@pytest.mark.parametrize("path", ["", "/plan"])
def test_number_out_of_bounds_is_a_refusal_of_one_sentence(
    web: Running, path: str, field: str, value: object
) -> None:
    answer = web.client.post(f"/v1/videos{path}", json=SMALL | {field: value})
    assert answer.status_code == 400, answer.text[:300]
    assert len(refusal(answer)["message"]) < 400


def test_small_body_of_any_depth_is_refused(web: Running) -> None:
    job = web.job()
    remix, others = f"/v1/videos/{job}/remix", ("/session", f"/v1/videos/{job}/priority")
    json_type = {"content-type": "application/json"}

    def status(path: str, body: bytes) -> int:
        return web.client.post(path, content=body, headers=json_type).status_code

    for body in (b"[" * 4000, b'{"prompt":' * 400, b'{"prompt": ' + b"9" * 4000 + b"}"):
        for path in (remix, *others):
            assert status(path, body) == 400, path
    for body in (b"[" * 500_000, b'{"prompt":' * 40_000, b'{"prompt": ' + b"9" * 5000 + b"}"):
        assert status(remix, body) == 400
        for path in others:
            assert status(path, body) == 413, path


def test_answer_before_the_body_says_that_the_connection_closes(web: Running) -> None:
    head = b"POST /session HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    body = b" " * 500_000
    with connected(web) as client:
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body))
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        client.sendall(body)
        while more := client.recv(65536):
            answer += more
        assert answer.count(b"HTTP/1.1") == 1


def test_queries_and_ranges_out_of_bounds_are_refused(web: Running) -> None:
    for query in ("limit=" + "9" * 400, "limit=-1", "limit=1e9", "search=%00", "after=%00"):
        assert web.client.get(f"/v1/videos?{query}").status_code in (400, 404), query


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a", "\\ud800": 1}', b'{"prompt": "\\ud800"}', b'{"prompt": NaN}',
        b'{"prompt": "a", "seconds": Infinity}', b'{"prompt": "a", "steps": 1e999999}',
        b'{"prompt": "a", "' + b"k" * 10_000 + b'": 1}',
    ],
)  # fmt: skip
def test_json_that_is_no_text_is_refused(web: Running, content: bytes) -> None:
    answer = web.client.post("/v1/videos", content=content)
    assert answer.status_code == 400, answer.text[:300]
    assert len(refusal(answer)["message"]) < 600


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=x; charset=foo",
        "multipart/form-data",
        "application/x-www-form-urlencoded; charset=\xff",
        "multipart/form-data; boundary=" + "x" * 9000,
    ],
)
def test_forms_that_cannot_be_read_are_refused(web: Running, kind: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\xff\xfe\r\n--x--\r\n'
    headers = {b"content-type": kind.encode("latin-1")}
    answer = web.client.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


def test_idempotency_key_with_another_request_is_refused(web: Running) -> None:
    def ask(key: str, **fields: object) -> httpx2.Response:
        headers = {"Idempotency-Key": key}
        return web.client.post("/v1/videos", json=SMALL | fields, headers=headers)

    first = ask("k1").json()["id"]
    assert ask("k1").json()["id"] == first
    other = ask("k1", prompt="a blue ball")
    assert other.status_code == 400
    assert refusal(other)["code"] == "idempotency_key_reused"
    headers = {"Idempotency-Key": "k1"}
    remix = web.client.post(
        f"/v1/videos/{first}/remix", json={"prompt": "a red ball"}, headers=headers
    )
    assert refusal(remix)["code"] == "idempotency_key_reused"
    for _ in range(2):
        assert ask("").status_code == 400


def test_finished_clips_range_may_have_any_digits(shared_server: Running) -> None:
    job = shared_server.job()
    shared_server.wait_over(job)
    for digits, status in (("9" * 5000, 416), ("0", 206)):
        for range in (f"bytes={digits}-", f"bytes={digits}-{digits}"):
            answer = shared_server.client.get(f"/v1/videos/{job}/content", headers={"range": range})
            assert answer.status_code == status, range[:20]
    suffix = {"range": "bytes=-" + "9" * 5000}
    assert shared_server.client.get(f"/v1/videos/{job}/content", headers=suffix).status_code == 206


def answers_with(server: Running, status: int) -> bool:
    """Whether a new connection is answered so."""
    answer = httpx2.get(f"{server.url}/health", timeout=30)
    assert answer.status_code == 200 or refusal(answer)["code"] == "too_many_connections"
    return answer.status_code == status


def test_more_connections_of_one_address_than_it_may_have_are_turned_away(web: Running) -> None:
    """The server asks for the body of what it has read: a connection is then no longer idle."""
    head = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100"
    request = f"{head}\r\nExpect: 100-continue\r\n\r\n".encode()
    with many_connected(web, 60) as busy:
        for connection in busy:
            with suppress(BrokenPipeError, ConnectionResetError):  # one of the last is turned away
                connection.sendall(request)
        first = {connection.recv(12) for connection in busy}
        assert first <= {b"HTTP/1.1 100", b"HTTP/1.1 503"}, first
        assert answers_with(web, 503)
    wait_until(lambda: answers_with(web, 200), 30)


def test_slow_storage_keeps_neither_health_nor_looks_waiting(web: Running) -> None:
    home = Settings(home=web.home)
    job = web.job()
    database = Database(home)
    with database.transaction() as t:
        t.rows("update filmlet_job set status = 'completed', clip = 'clip.mp4'"
               " where id = :id", id=job)  # fmt: skip
    database.close()
    fifo = home.home / "jobs" / job / "clip.mp4"
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)  # opening it waits for a writer
    path = f"{web.url}/v1/videos/{job}"
    readers = [
        threading.Thread(target=lambda: httpx2.get(f"{path}/content", timeout=120))
        for _ in range(20)
    ]
    for reader in readers:
        reader.start()
    time.sleep(1)  # until every thread for storage waits
    answers_promptly(web)
    for url in (path, f"{path}?plain", f"{web.url}/ready"):
        assert httpx2.get(url, timeout=PROMPTLY_S).status_code in (200, 503)
    while any(reader.is_alive() for reader in readers):
        with suppress(OSError):  # nobody waits
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.05)


CHUNKED = b"POST /session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "framing", [b"0\r\n" + b"a: b\r\n" * 1_000_000, (b"1;" + b"x" * 3000 + b"\r\n{\r\n") * 2000]
)
def test_trailers_and_chunk_extensions_are_bounded(web: Running, framing: bytes) -> None:
    process = psutil.Process(web.process.pid)
    before = process.memory_info().rss
    status, error = exchange(web, CHUNKED + framing)
    assert (status, error["code"]) == (400, "bad_body")
    assert process.memory_info().rss - before < 50e6


def test_requests_that_wait_on_a_connection_are_bounded_and_end_with_it(web: Running) -> None:
    one = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(web) as connection:
        connection.sendall(one * 500)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert b"too_many_pipelined" in answer
    said = len(web.log)
    for _ in range(3):
        with connected(web) as connection:
            connection.sendall(one * 3 + b"\0\0\0\r\n\r\n")
            connection.recv(100)
    wait_until(lambda: answers_with(web, 200), 30)
    exchange(web, b"nonsense\r\n\r\n")  # is logged after whatever these have left
    assert not [line for line in web.log[said:] if "Error" in line or "Traceback" in line]


def test_body_of_many_wrong_values_is_refused_before_each_is_told(web: Running) -> None:
    bodies = [
        {"prompt": "a", "loras": [1] * 40_000},
        {"prompt": "a", "extra_prompts": [1] * 40_000},
        {"prompt": "a"} | {f"k{i}": 1 for i in range(40_000)},
    ]
    for body in bodies:
        answer = web.client.post("/v1/videos/plan", json=body)
        assert answer.status_code == 400
        assert refusal(answer)["message"] == "The body has too many values."
    assert web.client.post("/session", json={f"k{i}": 1 for i in range(5000)}).status_code == 413
