"""``borg-pull-admin``: the whitelist and the audit log, for the admin of the source."""
