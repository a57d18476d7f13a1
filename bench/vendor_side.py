"""The fake vendors as a separate process. It prints the environment for each vendor, and after each
line of input the requests since the last one."""

import asyncio
import json
import sys

import uvloop

from fake_vendors.server import VENDOR_APIS, serve_vendors


async def main(steps: int) -> None:
    step = {"say": "On with it.", "call": {"run_command": {"command": "true"}}}
    async with serve_vendors({"runs": [{"steps": [step] * (steps + 1)}]}) as vendors:
        print(
            json.dumps({vendor: vendors.build_environ(vendor) for vendor in VENDOR_APIS}),
            flush=True,
        )
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while await lines.readline():
            requests = [
                {
                    "path": request.path,
                    "headers": dict(request.headers),
                    "body": request.body,
                    "seconds": request.seconds,
                }
                for request in vendors.requests
            ]
            vendors.requests.clear()
            print(json.dumps(requests), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
