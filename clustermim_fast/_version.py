"""The version's one home: pyproject.toml and everything that prints it read it here."""

__version__ = "0.1.0.dev0"
