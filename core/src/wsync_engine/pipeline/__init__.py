"""A run, phase by phase: read run.py, then extract.py → diff.py → deliver.py → fold.py."""
