"""`python -m wsync_suprsend.double [--port 8765] [--list ID]`: serves a workspace until Ctrl-C; prints its address and credentials."""

from __future__ import annotations

import argparse
import json
import sys
import threading

from wsync_suprsend.double.server import serving
from wsync_suprsend.double.workspace import Workspace


def main() -> None:
    """Serve; the API key and `curl` tell what it holds."""
    parser = argparse.ArgumentParser(description="A SuprSend on this machine, for trying a sync without an account.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--list", action="append", default=[], metavar="ID", help="a list that is there from the beginning")
    options = parser.parse_args()
    workspace = Workspace(lists={name: set() for name in options.list})
    with serving(workspace, port=options.port) as server:
        config = {
            "base_url": server.url,
            "workspace_key": workspace.key,
            "workspace_secret": workspace.secret,
            "api_key": workspace.api_key,
        }
        sys.stdout.write(json.dumps(config) + "\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
