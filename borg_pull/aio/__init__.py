"""The companion: drives Nextcloud AIO's own daily backup for named actions."""
