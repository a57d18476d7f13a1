"""A pytest plugin (`-p fidelity.recorder`): writes down every exchange and webhook of every hub, a
JSON line each."""

import base64
import json
import os
from typing import Any

import pytest

from fidelity.packages import BUILD
from osiris.devhub.models import Delivery
from osiris.devhub.observers import ApiExchange
from osiris.devhub.server import API, Hub

FOLDER = BUILD / "recorded"


class Recorder:
    """One file for each process; tokens are left out, but for what an answer itself hands over."""

    def on_exchange(self, exchange: ApiExchange) -> None:
        request, answer = exchange.request, exchange.answer
        headers = dict(request.headers)
        authority = headers.pop("authorization", "")
        self._write(
            kind="exchange",
            by="people" if "ghp_" in authority else "osiris",
            method=request.method,
            path=request.scope["raw_path"].decode("ascii").partition("?")[0].removeprefix(API),
            query=request.url.query,
            headers=headers,
            body=_text(exchange.body),
            answer=answer
            and {
                "status": answer.status_code,
                "headers": dict(answer.headers),
                "body": _text(bytes(answer.body)),
            },
        )

    def on_delivery(self, delivery: Delivery) -> None:
        self._write(
            kind="delivery",
            event=delivery.event,
            headers=delivery.request_headers,
            body=_text(delivery.body),
            secret=delivery.app.webhook_secret,
        )

    def _write(self, **row: Any) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        with (FOLDER / f"{os.getpid()}.jsonl").open("a") as lines:
            lines.write(json.dumps({"test": test, **row}) + "\n")


def _text(data: bytes) -> str:
    """Bytes as text; what is no text is marked as base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def pytest_configure(config: pytest.Config) -> None:
    Hub.observers.append(Recorder())
