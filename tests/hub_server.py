"""A hub on loopback: model and data-set repositories served from a folder, with faults on demand.

It speaks as much of the hub's HTTP as its clients need: revisions, file trees, and files with the
headers X-Repo-Commit and ETag (the sha256, as the hub announces it for large files).
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer:
    """`with HubServer(folder) as hub:` serves `folder/<kind>/<org>/<name>/<commit>/<file>`.

    refs: (repository, name) -> commit, for branches. requests: "METHOD path" of each, in order.
    faults: file name -> faults to commit, one per GET of that file: a status code, `cut` (half the
    body) or `flip` (one letter changed, which no format notices). head_faults: the same for HEAD.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.refs: dict[tuple[str, str], str] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.head_faults: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, kind: str, repo: str, revision: str) -> str | None:
        """The commit that a revision of a repository means, or None."""
        commit = self.refs.get((repo, revision), revision)
        return commit if (self.folder / kind / repo / commit).is_dir() else None

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for one request."""
        parts = urlsplit(path).path.strip("/").split("/")  # a revision's slashes are still quoted
        if len(parts) < 5:
            return self._missing("no such page")
        if parts[0] == "api":
            _, kind, org, name, what, revision = [unquote(p) for p in parts[:6]]
            return self._api(kind, f"{org}/{name}", what, revision)
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        repo, revision, file = "/".join(parts[:2]), unquote(parts[3]), unquote("/".join(parts[4:]))
        return self._file(method, kind, repo, revision, file)

    def _missing(self, what: str) -> tuple[int, dict[str, str], bytes]:
        return 404, {"X-Error-Code": what, "X-Error-Message": what}, b""

    def _api(self, kind: str, repo: str, what: str, revision: str):
        if not (self.folder / kind / repo).is_dir():
            return self._missing("RepoNotFound")
        commit = self.commit(kind, repo, revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        top = self.folder / kind / repo / commit
        paths = [p for p in sorted(top.rglob("*")) if p.is_file()]
        if what == "revision":
            siblings = [{"rfilename": p.relative_to(top).as_posix()} for p in paths]
            body: object = {"id": repo, "sha": commit, "siblings": siblings}
        else:
            body = [
                {
                    "type": "file",
                    "path": p.relative_to(top).as_posix(),
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for p in paths
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def _file(self, method: str, kind: str, repo: str, revision: str, file: str):
        if not (self.folder / kind / repo).is_dir():
            return self._missing("RepoNotFound")
        commit = self.commit(kind, repo, revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        path = self.folder / kind / repo / commit / file
        if not path.is_file():
            return self._missing("EntryNotFound")
        body = path.read_bytes()
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "Content-Length": str(len(body)),
        }
        queue = (self.faults if method == "GET" else self.head_faults).get(path.name, [])
        fault = queue.pop(0) if queue else None
        if isinstance(fault, int):
            return fault, {}, b""
        if fault == "cut":
            body = body[: len(body) // 2]
        if fault == "flip":
            body = body.replace(b"sang", b"sung", 1)
        return 200, headers, body

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _respond(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD = _respond

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        return Handler
