"""wsync connector: Postgres source and sink."""

__version__ = "0.1.0"
