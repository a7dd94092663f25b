"""The admin's program: check, explain, keys and the audit log; needs no privilege."""
