"""Keys and secrets: what is stored encrypted, under which key, and where a reference in a configuration leads. Values are never shown."""
