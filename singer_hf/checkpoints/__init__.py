"""What a run leaves on the disk: whole or not at all, verified by a manifest, found again on resume."""
