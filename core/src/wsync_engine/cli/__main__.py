"""`python -m wsync_engine.cli`."""

from wsync_engine.cli.main import main

main()
