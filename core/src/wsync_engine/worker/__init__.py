"""Workers: a supervisor that holds leases, and warm child processes that execute one run at a time."""
