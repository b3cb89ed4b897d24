"""wsync connector: Postgres source and sink."""
