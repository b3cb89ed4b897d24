"""wsync connector: JSON over HTTP sink."""
