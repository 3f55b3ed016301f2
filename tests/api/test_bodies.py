"""Bodies of requests for videos: forms and JSON mean the same, nothing in them is dropped."""

import base64
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from filmlet.api import uploads
from tests.api.test_uploads import picture
from tests.helpers.servers import SMALL, refusal

TEXT = {name: str(value) for name, value in SMALL.items()}


def post_both(client: TestClient, fields: dict[str, object], path: str = "") -> list[Any]:
    """The answers to the same fields as JSON and as a form."""
    form = {name: str(value) for name, value in fields.items()}
    return [
        client.post(f"/v1/videos{path}", json=fields),
        client.post(f"/v1/videos{path}", data=form),
    ]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_frames", 9, "It is called frames here."),
        ("num_inference_steps", 4, "It is called steps here."),
        ("guidance_scale", 1, "It is called guidance here."),
        ("width", 64, "Give size as WIDTHxHEIGHT."),
        ("height", 64, "Give size as WIDTHxHEIGHT."),
        ("colour", "red", "There is no parameter 'colour'."),
    ],
)
def test_name_of_other_servers_is_refused_with_ours(
    client: TestClient, name: str, value: object, says: str
) -> None:
    for path in ("", "/plan"):
        for answer in post_both(client, {"prompt": "a", name: value}, path):
            assert answer.status_code == 400
            error = refusal(answer)
            assert (error["code"], error["param"]) == ("unknown_parameter", name)
            assert error["message"].endswith(says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("num_frames", "It is called frames here."),
        ("width", "Size and frame rate are those of the video."),
        ("size", "Size and frame rate are those of the video."),
        ("fps", "Size and frame rate are those of the video."),
    ],
)
def test_extension_says_what_is_the_videos_own(client: TestClient, name: str, says: str) -> None:
    answer = client.post("/v1/videos/extensions", json={"prompt": "a", name: 64})
    assert refusal(answer)["message"] == f"There is no parameter '{name}'. {says}"


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ("720x1280", "288x512"),
        ("1280x720", "512x288"),
        ("1024x1792", "288x512"),
        ("1792x1024", "512x288"),
    ],
)
def test_openais_sizes_are_refused_with_the_nearest_that_is_taken(
    client: TestClient, size: str, nearest: str
) -> None:
    for path in ("", "/plan"):
        for answer in post_both(client, {"prompt": "a", "size": size}, path):
            error = refusal(answer)
            assert (answer.status_code, error["code"]) == (400, "invalid_size")
            assert f"the nearest size is {nearest}." in error["message"]
    plan = client.post("/v1/videos/plan", json={"prompt": "a", "size": nearest}).json()
    assert plan["size"] == plan["generated_size"] == nearest


@pytest.mark.parametrize("name", ["input_reference", "last_reference"])
@pytest.mark.parametrize("path", ["", "/plan"])
def test_file_that_is_sent_twice_is_refused(client: TestClient, name: str, path: str) -> None:
    sent = base64.b64encode(picture()).decode()
    url = f"data:image/png;base64,{sent}"
    file = ("a.png", picture(), "image/png")
    for files, data in (
        ([(name, file), (name, file)], TEXT),
        ([(name, file)], TEXT | {name: "text"}),
        ([(name, file)], TEXT | {f"{name}[image_url]": url}),
        ([], TEXT | {name: url, f"{name}[image_url]": url}),
    ):
        answer = client.post(f"/v1/videos{path}", data=data, files=files)
        assert answer.status_code == 400
        assert refusal(answer)["param"] == name
        assert refusal(answer)["message"] == f"There may be one {name}, not several."
    assert client.get("/v1/videos").json()["data"] == []


def test_video_that_is_given_twice_is_refused(client: TestClient) -> None:
    video = ("a.mp4", b"x")
    for path in ("extensions", "edits"):
        answer = client.post(
            f"/v1/videos/{path}", data={"prompt": "a"}, files=[("video", video), ("video", video)]
        )
        assert refusal(answer)["param"] == "video"
    answer = client.post(
        "/v1/videos/extensions", data={"prompt": "a", "video[id]": "clip_0"},
        files={"video": video},
    )  # fmt: skip
    assert refusal(answer)["message"] == "Give video as a file or as an id, not both."


LORAS = [{"source": "acme/one", "strength": 0.5}, {"source": "acme/two", "strength": 1.0}]


@pytest.mark.parametrize(
    "names",
    [
        ["source", "strength", "source", "strength"],
        ["source", "source", "strength", "strength"],
    ],
    ids=["by object", "by key"],
)
def test_objects_in_a_form_are_those_of_json(client: TestClient, names: list[str]) -> None:
    values = {name: [str(lora[name]) for lora in LORAS] for name in ("source", "strength")}
    pairs = [(f"loras[][{name}]", values[name].pop(0)) for name in names]
    form: dict[str, Any] = {**TEXT}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    parts = [(name, (None, value)) for name, value in [*TEXT.items(), *pairs]]
    answers = [
        client.post("/v1/videos", json=SMALL | {"loras": LORAS}),
        client.post("/v1/videos", data=form),
        client.post("/v1/videos", files=parts),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["requested"]["loras"] == answers[0].json()["requested"]["loras"]


def test_objects_of_a_form_that_cannot_be_told_apart_are_refused(client: TestClient) -> None:
    form = TEXT | {"loras[][source]": ["acme/one", "acme/two"], "loras[][strength]": "0.5"}
    answer = client.post("/v1/videos", data=form)
    assert answer.status_code == 400
    assert refusal(answer)["param"] == "loras"


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("seconds", True, "0.5"),
        ("seed", False, "7"),
        ("steps", True, "2"),
        ("draft", 1, "false"),
        ("draft", 0.0, False),
    ],
)
def test_true_is_no_number_and_a_number_not_true(
    client: TestClient, name: str, wrong: object, right: object
) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a", name: wrong})
    assert (answer.status_code, refusal(answer)["param"]) == (400, name)
    assert client.post("/v1/videos", json={"prompt": "a", name: right}).status_code == 200


def test_model_that_is_not_there_is_404_by_its_path(client: TestClient) -> None:
    answer = client.get("/v1/models/pockt")
    assert (answer.status_code, refusal(answer)["code"]) == (404, "unknown_model")
    assert client.post("/v1/videos", json=SMALL | {"model": "pockt"}).status_code == 400


def test_no_page_is_a_page_of_nothing(client: TestClient) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert client.get("/v1/videos?limit=0").json() == empty
    client.post("/v1/videos", json=SMALL)
    assert client.get("/v1/videos?limit=0").json() == empty | {"has_more": True}


def test_base64_is_decoded_in_a_thread(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    decode = uploads._decode_base64

    def note_thread(text: str) -> bytes:
        names.append(threading.current_thread().name)
        return decode(text)

    monkeypatch.setattr(uploads, "_decode_base64", note_thread)
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    sent = SMALL | {"input_reference": {"image_url": url}}
    assert client.post("/v1/videos/plan", json=sent).status_code == 200
    assert client.post("/v1/videos", data=TEXT | {"input_reference": url}).status_code == 200
    assert len(names) == 2
    assert all(name.startswith("AnyIO worker thread") for name in names)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 2**18])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 200])
def test_base64_in_pieces_is_what_it_is_whole(
    monkeypatch: pytest.MonkeyPatch, piece: int, size: int
) -> None:
    monkeypatch.setattr(uploads, "PIECE_CHARS", piece)
    data = bytes(range(255, 255 - size, -1))
    plain = base64.b64encode(data).decode()
    for text in (
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        quote(plain, safe=""),
        "\r\n ".join(plain) + "\n",
    ):
        assert uploads._decode_base64(text) == data, text
    for text in ("%", "A%", "AA==AAAAAAAA", "AAA*", "A", plain + "é"):
        with pytest.raises(ValueError, match=r"."):
            uploads._decode_base64(text)


def test_base64_of_too_much_is_not_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> bytes:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(uploads, "_decode_base64", refuse)
    url = "data:image/png;base64," + "A" * (uploads.TEXT_BYTES + 1)
    answer = client.post("/v1/videos", json=SMALL | {"input_reference": {"image_url": url}})
    assert answer.status_code == 400
    assert "at most 20 MiB" in refusal(answer)["message"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_full_temporary_disk_is_said_in_the_envelope(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_full(*_: object, **__: object) -> object:
        return Path("/dev/full").open("w+b", buffering=0)

    monkeypatch.setattr("tempfile.TemporaryFile", open_full)
    file = ("a.mp4", bytes(3 * 2**20))
    for path, name in (("", "input_reference"), ("/plan", "last_reference"), ("/edits", "video")):
        answer = client.post(f"/v1/videos{path}", data={"prompt": "a"}, files={name: file})
        assert answer.status_code == 503, answer.text
        assert refusal(answer)["code"] == "disk_full"
        assert "/dev/full" not in answer.text


def test_no_folder_with_room_for_uploads_is_a_full_disk(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/no-such-folder"])
    file = ("a.png", picture())
    answer = client.post("/v1/videos", data=TEXT, files={"input_reference": file})
    assert (answer.status_code, refusal(answer)["code"]) == (503, "disk_full")
    assert "/proc" not in answer.text
