"""Everything that a GPU has to show, in one command of under ten minutes: see __main__.py."""
