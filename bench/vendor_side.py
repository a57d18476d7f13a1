"""The vendors in a process of their own. Prints how each is reached, and after each line of input
what it was asked."""

import asyncio
import json
import sys

import uvloop

from fake_vendors.server import WIRES, serving


async def main(steps: int) -> None:
    step = {"say": "On with it.", "call": {"run_command": {"command": "true"}}}
    async with serving({"runs": [{"steps": [step] * (steps + 1)}]}) as vendors:
        print(json.dumps({vendor: vendors.environ(vendor) for vendor in WIRES}), flush=True)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while await lines.readline():
            asked = [
                {
                    "path": one.path,
                    "headers": dict(one.headers),
                    "body": one.body,
                    "seconds": one.seconds,
                }
                for one in vendors.requests
            ]
            vendors.requests.clear()
            print(json.dumps(asked), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
