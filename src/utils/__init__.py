"""Leaf helpers, which import nothing else of this project."""

import warnings

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred's import, nothing to act upon
