"""Records between stages and Arrow schemas of every table; importable without Beam or torch."""
