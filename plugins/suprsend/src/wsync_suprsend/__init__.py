"""wsync_suprsend: the SuprSend sink, for user profiles and subscriber lists. Begin with `config.py`, then `sink.py`."""

__version__ = "0.1.0"
