"""Runs as processes of their own, to be killed."""
