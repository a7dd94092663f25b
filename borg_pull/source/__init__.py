"""The forced command on the machine that owns the data."""
