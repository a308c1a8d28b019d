"""A small OpenAI-compatible server that misbehaves on demand; it also stands in for SGLang's.

``faults`` holds what it does wrong: ``slow`` (no answer while the server lives), ``500``, ``cut stream``,
``bad json``, ``bad json stream``, ``error in stream``, ``wrong model``, ``lists another model``,
``no choices``, ``no usage``, ``accepts any key``, ``accepts bad input``, ``accepts long prompts``,
``cuts prompts``, ``unhealthy``, ``refuses some``. Only the standard library: the fake SGLang runs in a bare
Python.
"""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTEXT = 512


class OpenAIServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port=0, *, host="127.0.0.1", key="", model="fake-model", faults=()):
        super().__init__((host, port), _Handler)
        self.key, self.model, self.faults = key, model, set(faults)
        self.ended = threading.Event()
        self.count = itertools.count()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def shutdown(self):
        self.ended.set()
        super().shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def log_message(self, form, *values):
        pass

    def do_GET(self):
        if self.path == "/health":
            return self._send(503 if "unhealthy" in self.server.faults else 200, {})
        if not self._is_allowed():
            return None
        if self.path != "/v1/models":
            return self._send(404, {"error": {"message": "no such path"}})
        name = "another-model" if "lists another model" in self.server.faults else self.server.model
        card = {"id": name, "object": "model", "created": 0, "owned_by": "tests", "max_model_len": CONTEXT}
        return self._send(200, {"object": "list", "data": [card]})

    def do_POST(self):
        faults = self.server.faults
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return None
        is_chat = self.path == "/v1/chat/completions"
        messages = body.get("messages", [{"content": body.get("prompt", "")}])
        text = " ".join(message["content"] for message in messages)
        tokens = len(text.split())
        if "accepts bad input" not in faults and (not messages or isinstance(body.get("temperature"), str)):
            return self._send(400, {"object": "error", "message": "bad input", "code": 400})
        if "accepts long prompts" not in faults and tokens > CONTEXT:
            return self._send(400, {"object": "error", "message": f"longer than {CONTEXT}", "code": 400})
        if "slow" in faults:
            self.server.ended.wait()
            return self._send(503, {})
        if "500" in faults or ("refuses some" in faults and next(self.server.count) % 3 == 0):
            return self._send(500, {"error": {"message": "the scheduler died"}})
        answer = {
            "id": "1",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 0,
            "model": "another-model" if "wrong model" in faults else body["model"],
        }
        usage = {
            "prompt_tokens": min(tokens, 20) if "cuts prompts" in faults else tokens,
            "completion_tokens": 4,
        }
        usage["total_tokens"] = sum(usage.values())
        if body.get("stream"):
            return self._stream(answer, usage)
        if "bad json" in faults:
            return self._send(200, b'{"choices": [')
        part = {"message": {"role": "assistant", "content": "a b c d"}} if is_chat else {"text": "a b c d"}
        choices = [] if "no choices" in faults else [{"index": 0, "finish_reason": "stop", **part}]
        return self._send(200, {**answer, "choices": choices, "usage": usage})

    def _stream(self, answer, usage):
        faults = self.server.faults
        answer = {**answer, "object": "chat.completion.chunk"}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in "abcd":
            delta = {"role": "assistant", "content": piece}
            self._event({**answer, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if "bad json stream" in faults:
            self._chunk(b"data: {not json\n\n")
        if "error in stream" in faults:
            self._event({"error": {"message": "the scheduler died", "code": 500}})
        if "cut stream" in faults:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if "ends early" not in faults:
            self._event({**answer, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if "no usage" not in faults:
            self._event({**answer, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, document):
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _is_allowed(self):
        given = self.headers.get("Authorization")
        if "accepts any key" in self.server.faults or given == f"Bearer {self.server.key}":
            return True
        self._send(401, {"error": "Unauthorized"})
        return False

    def _send(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
