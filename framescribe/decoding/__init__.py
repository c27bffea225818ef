"""Frames out of videos: child processes that decode, and the arithmetic of sampling; no Beam and no torch in here."""
