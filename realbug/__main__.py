"""`python -m realbug [VENDOR]`: exit with 0 if the fix was merged and every check passed, otherwise
with 1 and one sentence."""

import argparse
import sys

import httpx
import uvloop

from fake_vendors.server import VENDOR_APIS
from osiris.core.errors import OsirisError
from realbug.story import SCRIPTED, play_story


def main() -> int:
    parser = argparse.ArgumentParser(prog="real", description=__doc__)
    parser.add_argument("vendor", nargs="?", default=SCRIPTED, choices=[SCRIPTED, *VENDOR_APIS])
    try:
        uvloop.run(play_story(parser.parse_args().vendor))
    except (OsirisError, httpx.HTTPError, TimeoutError) as error:
        print(f"real: {' '.join(str(error).split()) or 'it took too long'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
