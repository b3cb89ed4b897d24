"""The demo: a warehouse, a subscriber table and a schedule on this machine, with the real processes, checked row by row."""

from wsync_engine.demo.show import run_demo

__all__ = ["run_demo"]
