"""A pytest plugin (`-p fidelity.recorder`) that records every exchange and webhook of every hub,
one JSON line each."""

import base64
import json
import os
from typing import Any

import pytest

from fidelity.packages import BUILD_FOLDER
from osiris.devhub.models import Delivery
from osiris.devhub.observers import ApiExchange
from osiris.devhub.server import API, Hub

RECORDINGS_FOLDER = BUILD_FOLDER / "recorded"


class Recorder:
    """A recorder with one file for each process. Tokens are left out, except those that an answer
    itself contains."""

    def on_exchange(self, exchange: ApiExchange) -> None:
        request, answer = exchange.request, exchange.answer
        headers = dict(request.headers)
        authorization = headers.pop("authorization", "")
        self._write(
            kind="exchange",
            by="people" if "ghp_" in authorization else "osiris",
            method=request.method,
            path=request.scope["raw_path"].decode("ascii").partition("?")[0].removeprefix(API),
            query=request.url.query,
            headers=headers,
            body=_decode_text(exchange.body),
            answer=answer
            and {
                "status": answer.status_code,
                "headers": dict(answer.headers),
                "body": _decode_text(bytes(answer.body)),
            },
        )

    def on_delivery(self, delivery: Delivery) -> None:
        self._write(
            kind="delivery",
            event=delivery.event,
            headers=delivery.request_headers,
            body=_decode_text(delivery.body),
            secret=delivery.app.webhook_secret,
        )

    def _write(self, **row: Any) -> None:
        RECORDINGS_FOLDER.mkdir(parents=True, exist_ok=True)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        with (RECORDINGS_FOLDER / f"{os.getpid()}.jsonl").open("a") as lines:
            lines.write(json.dumps({"test": test, **row}) + "\n")


def _decode_text(data: bytes) -> str:
    """Return bytes as text; if they are not UTF-8, as base64 with a mark."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def pytest_configure(config: pytest.Config) -> None:
    Hub.observers.append(Recorder())
