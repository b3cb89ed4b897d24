"""What the engine says about itself: its log."""

from wsync_engine.telemetry.log import log_to_stderr

__all__ = ["log_to_stderr"]
