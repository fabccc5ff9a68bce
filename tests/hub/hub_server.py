"""A stand-in of the Hub on loopback, with the endpoints that huggingface_hub uses for models, and faults on demand.

    with HubServer() as hub:
        hub.fail("PUT /lfs/", status=429, headers={"Retry-After": "1"})     # the next such request
        HfApi(endpoint=hub.url, token=hub.token).create_repo("user/student")

Content is kept by its hash: LFS objects by SHA-256, which is checked at upload, other files as git blobs. A commit of
objects that are not all there is refused. Unlike the Hub it serves LFS files itself, without the redirect to a content
network, and knows no Xet (`HF_HUB_DISABLE_XET=1`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from card_rules import metadata_errors

LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt", ".png", ".jpg", ".parquet")  # as a repository's .gitattributes
REGULAR_LIMIT = 10 * 2**20


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path" begins with `request`: an answer of `status`, or `cut` or `stall`
    in the middle of the body (`stall` until the server stops)."""

    request: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "as asked for by the test"
    way: str = "status"


@dataclass(frozen=True)
class Blob:
    """A file of a commit: a git blob, or an LFS object."""

    oid: str
    size: int
    lfs: bool


class Repo:
    """Commits (oid -> path -> Blob) and branches of one repository."""

    def __init__(self, private: bool, attributes: Blob):
        self.private = private
        self.branches: dict[str, str] = {}
        self.commits: dict[str, dict[str, Blob]] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": attributes}, "initial commit")

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        parent = self.branches.get(branch, "")
        described = json.dumps([parent, len(self.messages), message, sorted((p, b.oid) for p, b in files.items())])
        oid = hashlib.sha1(described.encode()).hexdigest()
        self.branches[branch], self.commits[oid] = oid, files
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """The server and all it holds. `url` is the endpoint, `token` may write, `read_token` may only read."""

    token, read_token, user = "hf_" + "w" * 34, "hf_" + "r" * 34, "user"

    def __init__(self, part_size: int | None = None):
        self.part_size = part_size  # above it, files are asked for in parts of this size
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # oid (SHA-256 of LFS, SHA-1 of git) -> content
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []  # "METHOD /path", in order
        self.received: dict[str, int] = {}  # LFS object -> bytes of its complete uploads
        self.faults: list[Fault] = []
        self.reached = threading.Event()  # a stalled upload is in its middle
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, request: str, status: int | None = None, *, times: int = 1, way: str = "status", **fields) -> Fault:
        """Arranges a [`Fault`] for the next `times` such requests."""
        fault = Fault(request, times, status, way=way, **fields)
        self.faults.append(fault)
        return fault

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> content of what is published, without the Hub's own .gitattributes."""
        commit = self.repos[repo].commits[self.repos[repo].resolve(revision)]
        return {path: self.objects[blob.oid] for path, blob in sorted(commit.items()) if path != ".gitattributes"}

    def count(self, pattern: str) -> int:
        """Requests so far whose "METHOD /path" the pattern matches from its beginning."""
        return sum(re.match(pattern, request) is not None for request in self.requests)

    def put(self, content: bytes, lfs: bool) -> Blob:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        oid = hashlib.sha256(content).hexdigest() if lfs else git
        self.objects[oid] = content
        return Blob(oid, len(content), lfs)


class _Answer(Exception):
    """Ends a request with a status and a JSON body."""

    def __init__(self, status: int, body=None, headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, {} if body is None else body, headers or {}


def _refused(status: int, message: str, code: str | None = None) -> _Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return _Answer(status, {"error": message}, headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/models/([^/]+/[^/]+)", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", "tree"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
        ("PUT", r"/lfs/([0-9a-f]{64})/([0-9]+)", "lfs_put_part"),
        ("POST", r"/lfs/([0-9a-f]{64})/complete", "lfs_complete"),
        ("POST", r"/lfs/([0-9a-f]{64})/verify", "lfs_verify"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args):
        pass

    # -- the way of a request ----------------------------------------------------------------------------------------
    def _serve(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {unquote(path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = next((f for f in self.hub.faults if f.times and request.startswith(f.request)), None)
            if fault is not None:
                fault.times -= 1
        try:
            if fault is not None:
                self._fault(fault)
            body = self._body()
            for method, pattern, name in self.ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    with self.hub.lock:
                        getattr(self, name)(*(unquote(group) for group in found.groups()), body=body)
            raise _refused(404, f"the stand-in has no {request}")
        except _Answer as answer:
            self._send(answer)
        except ConnectionError:
            self.close_connection = True

    def _fault(self, fault: Fault) -> None:
        if fault.way == "status":
            self._body()
            answer = _refused(fault.status, fault.message)
            answer.headers |= fault.headers
            raise answer
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        if fault.way == "stall":
            self.hub.reached.set()
            self.hub.released.wait()
        self.connection.close()
        raise ConnectionAbortedError(fault.way)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client is gone")
        return body

    def _send(self, answer: _Answer) -> None:
        raw = isinstance(answer.body, bytes)
        body = answer.body if raw else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"} | answer.headers
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # -- who may do what ---------------------------------------------------------------------------------------------
    def _token(self) -> str | None:
        sent = self.headers.get("Authorization")
        if sent is None:
            return None
        token = sent.removeprefix("Bearer ")
        if token not in (self.hub.token, self.hub.read_token):
            raise _refused(401, "Invalid credentials in Authorization header")
        return token

    def _may_write(self, namespace: str) -> None:
        token = self._token()
        if token is None:
            raise _refused(401, "Invalid username or password.")
        if token != self.hub.token or namespace != self.hub.user:
            raise _refused(403, f"You don't have the rights to write to {namespace}")

    def _repo(self, name: str, write: bool = False) -> Repo:
        repo, token = self.hub.repos.get(name), self._token()
        if repo is None or (repo.private and token is None):
            raise _refused(404 if token else 401, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(name.split("/")[0])
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise _refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # -- endpoints ---------------------------------------------------------------------------------------------------
    def whoami(self, body):
        token = self._token()
        if token is None:
            raise _refused(401, "Invalid username or password.")
        role = "write" if token == self.hub.token else "read"
        access = {"displayName": "test", "role": role}
        raise _Answer(
            200,
            {
                "type": "user",
                "name": self.hub.user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": access},
            },
        )

    def validate_yaml(self, body):
        errors, warnings = metadata_errors(json.loads(body)["content"])
        found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        raise _Answer(400 if errors else 200, found)

    def create(self, body):
        asked = json.loads(body)
        namespace = asked.get("organization") or self.hub.user
        self._may_write(namespace)
        name = f"{namespace}/{asked['name']}"
        if name in self.hub.repos:
            url = f"{self.hub.url}/{name}"
            raise _Answer(409, {"error": "You already created this model repo", "url": url, "name": name})
        private = asked.get("private", asked.get("visibility") == "private")
        lines = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.hub.repos[name] = Repo(private, self.hub.put(lines.encode(), lfs=False))
        raise _Answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, name, revision="main", *, body):
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        raise _Answer(
            200, {"id": name, "modelId": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}
        )

    def refs(self, name, *, body):
        branches = self._repo(name).branches
        found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches.items()]
        raise _Answer(200, {"branches": found, "tags": [], "converts": []})

    def tree(self, name, revision, folder, *, body):
        repo = self._repo(name)
        files = repo.commits[self._commit_of(repo, revision)]
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = []
        for path, blob in sorted(files.items()):
            inside = path.removeprefix(folder + "/") if folder else path
            if (folder and inside == path) or ("/" in inside and not recursive):
                continue
            lfs = {"lfs": {"oid": blob.oid, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
            entries.append({"type": "file", "path": path, "size": blob.size, "oid": blob.oid[:40]} | lfs)
        raise _Answer(200, entries)

    def branch(self, name, branch, *, body):
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise _refused(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self._commit_of(repo, json.loads(body or b"{}").get("startingPoint", "main"))
        raise _Answer(201, {})

    def preupload(self, name, revision, *, body):
        repo = self._repo(name, write=True)
        present = repo.commits[self._commit_of(repo, revision)]
        answer = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            lfs = path.endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
            oid = present[path].oid if path in present else None
            mode = "lfs" if lfs else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise _Answer(200, {"files": answer})

    def lfs_batch(self, name, *, body):
        self._repo(name, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            actions = {}
            if oid not in self.hub.objects:
                here = f"{self.hub.url}/lfs/{oid}"
                upload = {"href": here}
                if self.hub.part_size and size > self.hub.part_size:
                    parts = range(1, -(-size // self.hub.part_size) + 1)
                    header = {"chunk_size": str(self.hub.part_size)} | {str(part): f"{here}/{part}" for part in parts}
                    upload = {"href": f"{here}/complete", "header": header}
                actions = {"actions": {"upload": upload, "verify": {"href": f"{here}/verify"}}}
            objects.append({"oid": oid, "size": size} | actions)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid, *, body):
        self._keep(oid, body)
        raise _Answer(200, {}, {"ETag": f'"{oid}"'})

    def lfs_put_part(self, oid, part, *, body):
        self.hub.parts[oid, int(part)] = body
        raise _Answer(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def lfs_complete(self, oid, *, body):
        wanted = json.loads(body)["parts"]
        parts = [self.hub.parts[oid, part["partNumber"]] for part in wanted]
        if any(hashlib.md5(content).hexdigest() != p["etag"] for content, p in zip(parts, wanted, strict=True)):
            raise _refused(400, "a part's ETag is not that of what was sent")
        self._keep(oid, b"".join(parts))
        raise _Answer(200, {})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _refused(400, "the content does not have the hash that it was announced with")
        self.hub.objects[oid] = content
        self.hub.received[oid] = self.hub.received.get(oid, 0) + len(content)

    def lfs_verify(self, oid, *, body):
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise _refused(404, "no such object")
        raise _Answer(200, {})

    def commit(self, name, branch, *, body):
        repo = self._repo(name, write=True)
        parent = self._commit_of(repo, branch)
        if branch not in repo.branches:
            raise _refused(400, "a commit needs a branch")
        files, header = dict(repo.commits[parent]), {}
        for line in body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                header = value
            elif kind == "file":
                files[value["path"]] = self.hub.put(base64.b64decode(value["content"]), lfs=False)
            elif kind == "lfsFile":
                if len(self.hub.objects.get(value["oid"], b"")) != value["size"]:
                    raise _refused(400, f"the LFS object of {value['path']} was never uploaded")
                files[value["path"]] = Blob(value["oid"], value["size"], lfs=True)
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise _refused(400, f"the stand-in knows no {kind}")
        if header.get("parentCommit") not in (None, parent):
            raise _refused(412, "A commit has happened since. Please refresh and try again.")
        readme = files.get("README.md")
        if readme is not None and (errors := metadata_errors(self.hub.objects[readme.oid].decode())[0]):
            raise _refused(400, f"invalid card: {errors}")
        oid = repo.commit(branch, files, header["summary"])
        url = f"{self.hub.url}/{name}/commit/{oid}"
        raise _Answer(
            200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}
        )

    def resolve(self, name, revision, path, *, body):
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        blob = repo.commits[oid].get(path)
        if blob is None:
            refused = _refused(404, f"Entry not found: {path}", "EntryNotFound")
            refused.headers["X-Repo-Commit"] = oid
            raise refused
        content, headers = self.hub.objects[blob.oid], {"ETag": f'"{blob.oid}"', "X-Repo-Commit": oid}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(blob.size)}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or blob.size - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        raise _Answer(status, content, headers)
