"""wsync_suprsend.double: a SuprSend on this machine, for trying a sync without an account and for tests.

It keeps users and lists, computes signatures itself, and refuses what the documents rule out, more strictly than SuprSend may do: where the answer beyond a
limit is not documented, it is a 400 here. It sends no message to anybody. `python -m wsync_suprsend.double` serves one.
"""

from wsync_suprsend.double.server import Call, serving
from wsync_suprsend.double.workspace import Answer, User, Workspace

__all__ = ["Answer", "Call", "User", "Workspace", "serving"]
