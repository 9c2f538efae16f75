"""A stand-in for W&B's server, which cannot exist here: it keeps what it is told.

It answers what W&B's client asks to begin, resume, log and end a run; the names are W&B's own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
PROJECT = {"id": "p", "name": "segtrain", "entity": {"id": "e", "name": "me"}}
VIEWER = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    """Where what was told lies: rows of each run by their place, and every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.rows: dict[str, dict[int, str]] = {}
        self.configs: dict[str, str] = {}
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or ended, is no error."""

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, in their order."""
        return [json.loads(row) for _, row in sorted(self.rows.get(run, {}).items())]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL gives."""
        name = given.get("name") or given.get("run") or ""
        rows = [row for _, row in sorted(self.rows.get(name, {}).items())]
        bucket = {"id": "r", "name": name, "historyLineCount": len(rows)}
        if operation == "Viewer":
            return {"viewer": VIEWER}
        if operation == "RunResumeStatus":
            told = {
                **{"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"},
                **{"historyTail": json.dumps(rows[-1:]), "summaryMetrics": (rows or ["{}"])[-1]},
                **{"config": self.configs.get(name, "{}"), "wandbConfig": '{"t": 1}'},
            }
            known = name in self.configs
            return {"model": {**PROJECT, "bucket": {**bucket, **told} if known else None}}
        if operation == "UpsertBucket":
            self.configs[name] = given.get("config") or self.configs.get(name, "{}")
            told = {"displayName": given.get("displayName"), "project": PROJECT}
            return {"upsertBucket": {"bucket": {**bucket, **told}, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.url}/{each}"} for each in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}


class Answers(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *values: object) -> None: ...

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self._send({})

    def do_POST(self) -> None:
        self._send(self._told(json.loads(self._body) if self._is_json() else {}))

    def _is_json(self) -> bool:
        return self.path.endswith(("/graphql", "/file_stream"))

    def _told(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.path.endswith("/graphql"):
            return {
                "data": self.server.answer(given["operationName"], given.get("variables") or {})
            }
        if self.path.endswith("/file_stream"):
            chunk = given.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            rows = self.server.rows.setdefault(self.path.split("/")[-2], {})
            rows |= dict(enumerate(chunk["content"], chunk["offset"]))
        return {}

    def parse_request(self) -> bool:
        whole = super().parse_request()
        if whole:
            self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            head = f"{self.path} {self.headers.get('User-Agent')} ".encode()
            self.server.requests.append(head + self._body)
        return whole

    def _send(self, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serving() -> Generator[Server]:
    """A server for one test."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
