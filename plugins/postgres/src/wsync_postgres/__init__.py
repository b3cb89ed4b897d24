"""wsync connector: Postgres source and sink.

    source.py ── statement.py (what may be run) · columns.py (Postgres types to Arrow)
    sink.py ── table.py, keys.py (may this table take the sync) · bookkeeping.py (acks and fences)
        └ transaction.py (one chunk) ── staging.py (Arrow as COPY takes it) · merge.py (from there into the table)

Both talk to the server through `driver.py`, and `problems.py` says which of the SDK's errors one of the server is.
"""

__version__ = "0.1.0"
