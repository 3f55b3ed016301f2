"""Webhooks against hostile listeners and addresses: real sockets that answer badly."""

import datetime
import http.server
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from filmlet.errors import InvalidRequest
from filmlet.jobs import ApiKeyStore, webhooks
from filmlet.jobs.addresses import is_public, parse_webhook_url
from filmlet.jobs.database import Database
from filmlet.jobs.webhooks import WebhookTarget, post
from filmlet.settings import Settings

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="
MEGABYTE = 2**20


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener that reads a request's head and then does as told; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/told"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def tell(url: str) -> None:
    post(WebhookTarget(url, SECRET), "evt_1", b"{}", allow_private=True)


def test_body_of_an_answer_is_not_read() -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(400):
            connection.sendall(b"100000\r\n" + bytes(MEGABYTE) + b"\r\n")
            sent.append(1)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering(flood) as url:
        tell(url)
    assert len(sent) < 50  # megabytes, in the buffers of two sockets
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
    "piece", [b"x: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"h"], ids=["headers", "1xx", "line"]
)
def test_answer_without_end_is_given_up(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\n" if piece.startswith(b"x") else b""
        try:
            connection.sendall(head)
            while not ended.wait(0.05):
                connection.sendall(piece)
        finally:
            ended.set()

    with answering(drip) as url, pytest.raises((ValueError, httpx2.HTTPError)):
        tell(url)
    ended.wait(10)


def test_headers_are_bounded() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            connection.sendall(b"x-" + b"y" * MEGABYTE)

    with answering(flood) as url, pytest.raises(httpx2.HTTPError):
        tell(url)


def test_redirect_is_a_failure_and_leads_nowhere() -> None:
    reached = threading.Event()
    with answering(lambda _: reached.set()) as inside:
        told = f"HTTP/1.1 307 Go\r\nlocation: {inside}\r\ncontent-length: 0\r\n\r\n".encode()
        with answering(lambda c: c.sendall(told)) as url, pytest.raises(ValueError, match="307"):
            tell(url)
    assert not reached.is_set()


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()
    with (
        answering(lambda _: reached.set()) as proxy,
        answering(lambda c: c.sendall(b"HTTP/1.1 204 No\r\n\r\n")) as url,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("NO_PROXY", "")
        tell(url)
    assert not reached.is_set()


def test_certificate_must_be_that_of_the_name(tmp_path: Path) -> None:
    """The address is connected to, the name is asked for, and an unknown issuer is refused."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path / "cert.pem", "localhost"))
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
            tell(f"https://localhost:{server.server_port}/told")
        thread.join(10)
    assert asked == ["localhost"]


def make_certificate(path: Path, name: str) -> Path:
    """One that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200",
        "169.254.169.254", "168.63.129.16", "172.16.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1",
        "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
        "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:0:7f00:1::1",
        "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "fc00::1", "fd00:ec2::254",
        "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "2606:4700::5efe:7f00:1",
        "2606:4700::200:5efe:a00:1",
    ],
)  # fmt: skip
def test_no_address_but_global_unicast_is_public(address: str) -> None:
    assert not is_public(ip_address(address))


def test_usual_addresses_are_public() -> None:
    for address in ("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::6810:85e5", "2a00:1450::1"):
        assert is_public(ip_address(address)), address


ODD_URLS = [
    "", "ftp://example.com/", "file:///etc/passwd", "http://", "http:///x", "http:\\\\example.com",
    "http://u:p@example.com/", "http://example.com\\@127.0.0.1/", "http://example.com/\r\nX: y",
    "http://example.com/ x", "http://example.com/\0", "http://0177.0.0.1/", "http://0x7f.1/",
    "http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://%31%32%37.0.0.1/",
    "http://１２７.0.0.1/", "http://example.com./", "http://example..com/", "http://[fe80::1%25lo]/",
    "http://[::1", "http://example.com:0/", "http://example.com:65536/", "http://example.com:x/",
    "http://" + "a" * 64 + ".com/", "http://" + "a." * 127 + "com/", "http://x/" + "y" * 70_000,
    "http://-a.com/", "http://a b.com/", "http://xn--/",
]  # fmt: skip


def test_odd_urls_are_refused_with_a_sentence_where_a_key_is_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    database = Database(settings)
    keys = ApiKeyStore(database, settings)
    for url in ODD_URLS:
        with pytest.raises(InvalidRequest) as refusal:
            keys.add("ann", webhook=url)
        assert refusal.value.code == "invalid_webhook", url
        assert len(str(refusal.value)) < 300
        with pytest.raises(ValueError, match=r"\w"):
            post(WebhookTarget(url, SECRET), "evt_1", b"{}", allow_private=True)
    assert not keys.list_keys()
    database.close()


def test_usual_urls_are_taken() -> None:
    for url, host in (
        ("https://example.com/hook?token=1", b"example.com"),
        ("http://Listener_1:8080/", b"listener_1"),
        ("https://bücher.example/", b"xn--bcher-kva.example"),
        ("http://127.0.0.1:9/", b"127.0.0.1"),
        ("http://[::1]:9/", b"::1"),
        ("https://3com.example.1password.com/", b"3com.example.1password.com"),
    ):
        assert parse_webhook_url(url).raw_host == host


@pytest.mark.parametrize("host", ["[64:ff9b::7f00:1]", "[2002:7f00:1::1]", "[fec0::1]", "0.0.0.0"])
def test_addresses_that_hide_a_private_one_are_not_told(host: str) -> None:
    with pytest.raises(ValueError, match="private network"):
        post(WebhookTarget(f"http://{host}:9/", SECRET), "evt_1", b"{}", allow_private=False)
