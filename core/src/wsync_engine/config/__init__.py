"""`wsync.yaml` in: from text to a declaration, with every mistake shown where it was typed."""
