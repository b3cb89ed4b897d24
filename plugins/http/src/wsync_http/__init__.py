"""wsync_http: the HTTP sink, for any endpoint that takes JSON. Begin with `config.py`, then `sink.py`."""

__version__ = "0.1.0"
