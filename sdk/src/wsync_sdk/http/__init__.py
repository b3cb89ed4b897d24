"""wsync_sdk.http: HTTP for sinks, with one deadline per call and connections to checked addresses only. Needs `wsync-sdk[http]`.

A plugin's module for the engine must not import it: the factory's module does, when a connection opens.
"""

from wsync_sdk.http.client import Client, Request
from wsync_sdk.http.reply import Body, Reply, retry_after_s

__all__ = ["Body", "Client", "Reply", "Request", "retry_after_s"]
