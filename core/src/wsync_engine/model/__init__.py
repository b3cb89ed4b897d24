"""Frozen values and enums that all other parts share. No I/O; imports nothing of ours."""
