"""Paired replay: the same requests on the served model and on a baseline; sums of what differs, no raw values."""
