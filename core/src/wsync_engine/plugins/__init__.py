"""The plugin host: finds connectors, checks them before and after import, and fences their errors off."""

from wsync_engine.plugins.host import PluginHost, PluginReport

__all__ = ["PluginHost", "PluginReport"]
