"""`python -m real`: exit 0 when the fix was merged and every claim holds, else 1 and one sentence."""

import sys

import httpx
import uvloop

from osiris.errors import OsirisError
from real.story import play


def main() -> int:
    try:
        uvloop.run(play())
    except (OsirisError, httpx.HTTPError, TimeoutError) as error:
        print(f"real: {' '.join(str(error).split()) or 'it took too long'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
