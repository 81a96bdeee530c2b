"""From registry and options to a finished explanation."""
