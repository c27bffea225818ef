"""The OUTPUT folder on any file system: its layout, atomic writes, retries; importable without Beam or torch."""
