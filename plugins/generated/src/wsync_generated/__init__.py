"""A source of made-up rows and a sink that counts, to try and to measure an installation."""

from wsync_generated.counted import Total, total

__version__ = "0.1.0"
__all__ = ["Total", "total"]
