"""The backup server's side: pulls, keeps their history, and tells what is stale."""
