"""A stand-in of the Hub for Spaces, as far as the real client calls it; on loopback."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKEN = "hf_ann"
QUIET = ("/preupload/", "/validate-yaml", "/lfs/")  # asked before a commit


@dataclass
class Space:
    """A Space's repository and its settings. files: content by path."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    hardware: str | None = None
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files))).encode()).hexdigest()


@dataclass
class Hub:
    """Every Space and bucket, and the calls that changed something. refuses: status by path end."""

    url: str = ""
    spaces: dict[str, Space] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)  # by sha256: what went by LFS
    writes: list[str] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)


def app(hub: Hub) -> FastAPI:
    api = FastAPI()

    _gate(api, hub)

    @api.get("/api/whoami-v2")
    def whoami() -> dict[str, Any]:
        return {"type": "user", "name": "ann", "auth": {}, "orgs": []}

    @api.post("/api/validate-yaml")
    async def validate(request: Request) -> dict[str, Any]:
        asked = await request.json()
        matter = yaml.safe_load(asked["content"].split("---")[1])
        assert (asked["repoType"], matter["sdk"]) == ("space", "gradio")
        return {"errors": [], "warnings": []}

    @api.post("/api/repos/create")
    async def create(request: Request) -> Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        assert (asked["type"], asked["sdk"]) == ("space", "gradio")
        if name in hub.spaces:
            return _refuse(409, "You already created this space repo")
        hub.spaces[name] = Space(asked.get("visibility") == "private", {".gitattributes": b"*\n"})
        return JSONResponse({"url": f"{hub.url}/spaces/{name}"})

    @api.post("/api/buckets/{owner}/{name}")
    def bucket(owner: str, name: str) -> dict[str, str]:
        hub.buckets.add(f"{owner}/{name}")
        return {"url": f"{hub.url}/buckets/{owner}/{name}"}

    _space(api, hub)
    _files(api, hub)
    return api


def _gate(api: FastAPI, hub: Hub) -> None:
    @api.middleware("http")
    async def gate(request: Request, follow: Any) -> Response:
        path = request.url.path
        if (
            not path.startswith("/lfs/")
            and request.headers.get("authorization") != f"Bearer {TOKEN}"
        ):
            return _refuse(401, "Invalid credentials in Authorization header")
        for end, status in hub.refuses.items():
            if path.endswith(end) and request.method != "GET":
                return _refuse(status, "this is not for you")
        answer: Response = await follow(request)
        if (
            request.method != "GET"
            and answer.status_code < 300
            and not any(word in path for word in QUIET)
        ):
            hub.writes.append(f"{request.method} {path.removeprefix('/api/')}")
        return answer


def _space(api: FastAPI, hub: Hub) -> None:
    def runtime(space: Space) -> dict[str, Any]:
        hardware = {"current": "cpu-basic", "requested": space.hardware}
        return {"stage": "RUNNING", "hardware": hardware, "volumes": space.volumes or None}

    @api.get("/api/spaces/{owner}/{name}")
    def info(owner: str, name: str) -> Response:
        space = hub.spaces.get(f"{owner}/{name}")
        if space is None:
            return _refuse(404, "Repository not found", "RepoNotFound")
        known = {"id": f"{owner}/{name}", "sha": space.sha, "private": space.private}
        return JSONResponse(known | {"sdk": "gradio", "tags": [], "likes": 0})

    @api.get("/api/spaces/{owner}/{name}/{what}")
    def look(owner: str, name: str, what: str) -> dict[str, Any]:
        space = hub.spaces[f"{owner}/{name}"]
        if what == "runtime":
            return runtime(space)
        assert what == "variables"
        return {key: {"key": key, "value": value} for key, value in space.variables.items()}

    @api.post("/api/spaces/{owner}/{name}/{what}")
    async def change(owner: str, name: str, what: str, request: Request) -> dict[str, Any]:
        space, asked = hub.spaces[f"{owner}/{name}"], await request.json()
        if what == "hardware":
            space.hardware = asked["flavor"]
            return runtime(space)
        kept = {"secrets": space.secrets, "variables": space.variables}[what]
        kept[asked["key"]] = asked["value"]
        return {key: {"key": key, "value": value} for key, value in kept.items()}

    @api.put("/api/spaces/{owner}/{name}/volumes")
    async def volumes(owner: str, name: str, request: Request) -> dict[str, str]:
        hub.spaces[f"{owner}/{name}"].volumes = (await request.json())["volumes"]
        return {}

    @api.put("/api/spaces/{owner}/{name}/settings")
    async def settings(owner: str, name: str, request: Request) -> dict[str, str]:
        asked = await request.json()
        is_private = asked.get("visibility") == "private" or asked.get("private") is True
        hub.spaces[f"{owner}/{name}"].private = is_private
        return {}


def _files(api: FastAPI, hub: Hub) -> None:
    @api.get("/api/spaces/{owner}/{name}/tree/{revision}")
    def tree(owner: str, name: str) -> list[dict[str, Any]]:
        space = hub.spaces[f"{owner}/{name}"]
        return [_entry(path, content) for path, content in space.files.items()]

    @api.post("/api/spaces/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request) -> dict[str, Any]:
        asked = (await request.json())["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular",
             "shouldIgnore": False, "oid": None}
            for f in asked
        ]  # fmt: skip
        return {"files": modes}

    @api.post("/spaces/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request) -> dict[str, Any]:
        asked = (await request.json())["objects"]
        found = [
            one | {"actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}} for one in asked
        ]
        return {"transfer": "basic", "objects": found}

    @api.put("/lfs/{oid}")
    async def upload(oid: str, request: Request) -> dict[str, str]:
        hub.blobs[oid] = await request.body()
        return {}

    @api.post("/api/spaces/{owner}/{name}/commit/{revision}")
    async def commit(owner: str, name: str, request: Request) -> Response:
        space = hub.spaces[f"{owner}/{name}"]
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, space.sha):
            return _refuse(412, "A commit has happened since")
        for line in lines[1:]:
            _apply(hub, space, line["key"], line["value"])
        space.commits.append(lines[0]["value"]["summary"])
        url = f"{hub.url}/spaces/{owner}/{name}/commit/{space.sha}"
        return JSONResponse({"commitOid": space.sha, "commitUrl": url, "hookOutput": ""})


def _apply(hub: Hub, space: Space, key: str, value: dict[str, Any]) -> None:
    match key:
        case "file":
            space.files[value["path"]] = base64.b64decode(value["content"])
        case "lfsFile":
            space.files[value["path"]] = hub.blobs[value["oid"]]
        case "deletedFile":
            del space.files[value["path"]]
        case _:
            raise AssertionError(key)


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
    if _is_large(path):
        sha = hashlib.sha256(content).hexdigest()
        entry |= {"oid": "0" * 40, "lfs": {"oid": sha, "size": len(content), "pointerSize": 134}}
    return entry


def _refuse(status: int, message: str, code: str = "") -> Response:
    headers = {"x-error-message": message} | ({"x-error-code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)
