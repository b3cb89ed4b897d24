"""The state store: the only code that talks to the engine's Postgres. Everyday statements live in `sql/`, the schema in `migrations/`."""
