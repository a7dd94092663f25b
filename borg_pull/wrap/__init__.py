"""The socket wrap: what borg starts as its remote shell."""
