"""Tests of the backup server's program."""
