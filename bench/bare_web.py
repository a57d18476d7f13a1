"""The comparison for memory: Python with uvicorn, FastAPI and one route."""

import os

import uvicorn
import uvloop
from fastapi import FastAPI

app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


if __name__ == "__main__":
    port = int(os.environ["BARE_PORT"])
    config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, access_log=False)
    uvloop.run(uvicorn.Server(config).serve())
