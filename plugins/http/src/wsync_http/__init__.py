"""wsync_http: the HTTP sink, for any endpoint that takes JSON. Begin with `config.py`, then `sink.py`."""

__all__: list[str] = []
