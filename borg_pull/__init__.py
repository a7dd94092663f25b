"""borg-pull: pull-mode Borg backups over SSH, judged and confined on the source."""

__version__ = "0.1.0"

# The protocol a forced command speaks; raised only when an answer or a verb changes incompatibly.
PROTOCOL_VERSION = 1
