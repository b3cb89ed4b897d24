"""The command line: parse, call one service, present. Nothing heavy is imported before a command runs."""
