"""``borg-pull-admin doctor``: what of this host is not as a pull needs it, and what to do."""
