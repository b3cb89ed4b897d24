"""Redis as an index of what is due and what is ready: rebuilt from Postgres at any time, never the truth, so losing it costs lateness only."""
