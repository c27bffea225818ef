"""A stand-in of the Hugging Face hub on this machine, as far as the client asks when it uploads a data set."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.web_fixtures import LocalServer, serving

TOKEN = "hf_plantedPLANTEDplanted"


class HubStandIn(LocalServer):
    """Keeps repositories of data sets in memory: creates them, takes commits of regular files and of LFS ("basic").

    Attributes:
        repos: id to path to bytes.
        is_private: id to whether it is private.
        readonly: ids that the token may read and not write.
        commits: paths that each commit named, in order.
        stored: sha256 to bytes of the objects that were put into LFS, in order.
        lfs_suffix: files whose names end so go to LFS.
        is_full: whether commits are refused.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.readonly: set[str] = set()
        self.commits: list[list[str]] = []
        self.stored: dict[str, bytes] = {}
        self.lfs_suffix = ".lfs"
        self.is_full = False

    def add(self, repo: str, is_private: bool = True) -> None:
        self.repos[repo] = {".gitattributes": b""}
        self.is_private[repo] = is_private


def hub_stand_in() -> AbstractContextManager[HubStandIn]:
    return serving(HubStandIn())


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubStandIn

    def do_GET(self) -> None:
        if not self._is_known():
            return
        repo, rest = self._split()
        if repo not in self.server.repos:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest == "auth-check/write":
            is_readonly = repo in self.server.readonly
            self._send(403 if is_readonly else 200, {"error": f"no write access for {TOKEN}"} if is_readonly else {})
        elif rest in ("", "revision/main"):
            sha = f"{len(self.server.commits):040d}"
            self._send(200, {"id": repo, "sha": sha, "private": self.server.is_private[repo], "siblings": []})
        elif rest == "tree/main":
            files = self.server.repos[repo]
            self._send(200, [{"type": "file", "path": p, "size": len(c), "oid": _git_oid(c)} for p, c in files.items()])
        else:
            self._send(404, {"error": f"the stand-in does not know {self.path}"})

    def do_POST(self) -> None:
        body = self._read()
        if not self._is_known():
            return
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"warnings": [], "errors": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send(200, {"transfer": "basic", "objects": [self._offer(o) for o in json.loads(body)["objects"]]})
        elif self._split()[1] == "preupload/main":
            self._send(200, {"files": [self._judge(self._split()[0], file) for file in json.loads(body)["files"]]})
        elif self._split()[1] == "commit/main":
            self._commit(self._split()[0], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {"error": f"the stand-in does not know {self.path}"})

    def do_PUT(self) -> None:
        content = self._read()  # by an address that is signed: without a token
        oid = self.path.rpartition("/")[2]
        is_whole = hashlib.sha256(content).hexdigest() == oid
        if is_whole:
            self.server.stored[oid] = content
        self._send(200 if is_whole else 400, {})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.url}/datasets/{repo}"}
        if repo in self.server.readonly:
            self._send(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        elif repo in self.server.repos:
            self._send(409, {"error": "You already created this dataset repo", **url})
        else:
            self.server.add(repo, asked.get("visibility", "private" if asked.get("private") else "public") == "private")
            self._send(200, url)

    def _judge(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        there = self.server.repos[repo].get(file["path"])
        is_lfs = file["path"].endswith(self.server.lfs_suffix)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if is_lfs else _git_oid(there)
        return {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}

    def _offer(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
        return asked if asked["oid"] in self.server.stored else {**asked, "actions": upload}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.server.is_full:
            self._send(403, {"error": f"storage limit reached, said to {TOKEN}"})
            return
        files = {}
        for line in lines[1:]:
            value = line["value"]
            is_lfs = line["key"] == "lfsFile"
            files[value["path"]] = self.server.stored[value["oid"]] if is_lfs else base64.b64decode(value["content"])
        self.server.repos[repo].update(files)
        self.server.commits.append(sorted(files))
        oid = f"{len(self.server.commits):040d}"
        self._send(200, {"commitUrl": f"{self.server.url}/datasets/{repo}/commit/{oid}", "commitOid": oid})

    def _split(self) -> tuple[str, str]:
        """Returns repository and the rest of `/api/datasets/NAMESPACE/NAME/...`."""
        parts = unquote(urlsplit(self.path).path).removeprefix("/api/datasets/").split("/")
        return "/".join(parts[:2]), "/".join(parts[2:])

    def _is_known(self) -> bool:
        is_known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if not is_known:
            self._send(401, {"error": "Invalid username or password."})
        return is_known

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        answer = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **(headers or {})}.items():
            self.send_header(name, value)
        if isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", str(content["error"]))
        self.end_headers()
        self.wfile.write(answer)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
