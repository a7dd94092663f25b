"""The end-to-end test harness: a private sshd, a source, a backup server, real borg."""
