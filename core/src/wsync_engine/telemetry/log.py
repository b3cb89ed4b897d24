"""The log of every process of ours. stdout is for data, so it goes to stderr."""

from __future__ import annotations

import logging
import os
import sys

import structlog

__all__ = ["log_to_stderr"]


def log_to_stderr(level: int = logging.INFO) -> None:
    """Set up this process's log; a child process does it again. Tracebacks come without local variables: these hold secrets and rows."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
