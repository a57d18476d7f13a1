"""The comparison for webhooks: an ASGI app that checks the signature, commits one row and
answers."""

import hashlib
import hmac
import os
import sqlite3
from typing import Any

import uvicorn
import uvloop

SECRET = os.environ["BARE_SECRET"].encode()
DATABASE = sqlite3.connect(os.environ["BARE_DATABASE"], isolation_level=None)
DATABASE.execute("PRAGMA journal_mode=WAL")
DATABASE.execute("PRAGMA synchronous=NORMAL")
DATABASE.execute(
    "CREATE TABLE inbox (id INTEGER PRIMARY KEY, delivery TEXT UNIQUE, kind TEXT, body BLOB)"
)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = dict(scope["headers"])
    digest = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    status = 401
    if hmac.compare_digest(f"sha256={digest}".encode(), headers.get(b"x-hub-signature-256", b"")):
        row = (headers[b"x-github-delivery"].decode(), headers[b"x-github-event"].decode(), body)
        # in autocommit mode, this is one transaction
        DATABASE.execute("INSERT INTO inbox (delivery, kind, body) VALUES (?, ?, ?)", row)
        status = 202
    answer = b'{"ok":true}'
    answer_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(answer)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": answer_headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    port = int(os.environ["BARE_PORT"])
    config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, access_log=False)
    uvloop.run(uvicorn.Server(config).serve())
