"""Hands the build to CMake; everything else is in pyproject.toml."""

import os

from setuptools import setup

# `make venv` installs the checkout in editable form and `make core` builds the extension in place;
# without this switch the same sources would be compiled twice. Never set it to build a wheel.
if os.environ.get("CLUSTERMIM_EDITABLE_WITHOUT_CORE") == "1":
    setup()
else:
    setup(cmake_source_dir=".")
