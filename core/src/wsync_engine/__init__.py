"""wsync_engine: schedules queries on warehouses and keeps subscriber stores in step with their results."""

from importlib.metadata import version

__version__ = version("wsync-engine")
