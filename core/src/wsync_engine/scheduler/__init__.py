"""When a run starts: times from expressions, decisions at a due instant, the store's statements, and the leaderless loop."""
