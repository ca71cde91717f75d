"""The resident trainer's command: one process a site that holds model, data and device memory between messages.

python -m client_app.resident --site site.yaml --socket trainer.sock --secret trainer.secret
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from client_app.resident import relay
from client_app.resident.serving import asked_to_end, listening, serve, trainer_of
from client_app.resident.watchdog import Watchdog
from client_app.site.private import load_site
from common.errors import UserError
from common.files import WriteError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 when asked to end, 2 for what the operator must mend, which it says."""
    parser = argparse.ArgumentParser(prog="python -m client_app.resident", description="Hold a site's model and data.")
    parser.add_argument("--site", type=Path, required=True, metavar="SITE.yaml")
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH", help="made at the start, for this user")
    parser.add_argument("--secret", type=Path, required=True, metavar="FILE", help="random bytes, 16 or more")
    parser.add_argument("--heartbeat", type=Path, metavar="PATH", help="touched every second while it serves")
    options = parser.parse_args(arguments)
    try:
        secret = relay.read_secret(options.secret)
        private = load_site(options.site)
        with private.file.held():
            site = private.for_seed()  # as what it registers; writes the client key when this is its first start
            with asked_to_end() as end, listening(options.socket) as listener:
                print(
                    f"ready: K = {site.num_params:,}, {len(site.train):,} training samples, "
                    f"{len(site.test):,} test samples",
                    flush=True,
                )
                watchdog = Watchdog(private.file.request_limit, options.heartbeat)
                watchdog.start()
                serve(listener, secret, trainer_of(private).answer, end, watchdog)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except WriteError as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
