"""Names of keys and channels. They carry the layout's version: processes of another layout work beside ours, each on an index of its own.

That is correct, since a conditional statement in Postgres decides who fires a schedule and who gets a run; both indexes may offer it.
"""

from __future__ import annotations

import binascii
from uuid import UUID

__all__ = ["OLD_KEYS", "RUN_KEYS", "WAKE_SCHEDULERS", "key", "old_key", "rate_key", "shard_of", "worker_channel"]

WAKE_SCHEDULERS = "ws2:wake:sched"
"""A message here has the number of the shard in which something is due earlier than before."""
RUN_KEYS = (
    "rq", "act", "pass", "st", "idle", "cap", "used", "held", "lease", "wait", "delay", "ewma", "parked", "urgent", "out", "waiting",
)  # fmt: skip
"""All that scripts about runs touch, in the order of `lua/runs.lua`; no key per queue, so that no script can miss one."""
OLD_KEYS = ("inc", "load", "due", "rev", "firing", "delay", "held", "lease", "rq:h", "rq:m", "rq:l", "idle", "st", "prog")


def shard_of(tenant_id: UUID, shards: int) -> int:
    """The shard that all of a tenant's entries live in."""
    return binascii.crc_hqx(tenant_id.bytes, 0) % shards


def key(shard: int, name: str) -> str:
    """A key of a shard; the braces keep a shard's keys on one node of a cluster."""
    return f"ws2:{{{shard}}}:{name}"


def old_key(shard: int, name: str) -> str:
    """A key of layout 1."""
    return f"ws:{{{shard}}}:{name}"


def rate_key(credential: str) -> str:
    """The rate budget of a destination's credential, whoever uses it. It lies in no shard: the braces hold the credential alone."""
    return f"ws2:{{k:{credential}}}:rate"


def worker_channel(worker_id: UUID) -> str:
    """The channel on which an idle worker is woken."""
    return f"ws2:w:{worker_id.hex}"
