"""What this package offers to the engine."""
