"""What the page is made of, as a browser gets it."""

import pytest

from tests.helpers.servers import Running


@pytest.mark.parametrize("path", ["/", "/ui/viewer.js", "/ui/app.css"])
def test_page_and_its_files_come_compressed_to_who_understands_it(
    shared_server: Running, path: str
) -> None:
    plain = shared_server.client.get(path, headers={"accept-encoding": "identity"})
    packed = shared_server.client.get(path, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    if path != "/":  # which has ids of its own each time
        assert packed.content == plain.content


def test_file_that_the_browser_has_is_not_sent_again(shared_server: Running) -> None:
    first = shared_server.client.get("/ui/viewer.js", headers={"accept-encoding": "gzip"})
    asked = {"accept-encoding": "gzip", "if-none-match": first.headers["etag"]}
    again = shared_server.client.get("/ui/viewer.js", headers=asked)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json", "/health", "/uix"])
def test_answers_of_the_api_are_not_compressed(shared_server: Running, path: str) -> None:
    answer = shared_server.client.get(path, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers
