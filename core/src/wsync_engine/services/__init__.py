"""What can be done: apply a declaration, trigger, cancel, approve, pause. CLI and API are thin over it."""
