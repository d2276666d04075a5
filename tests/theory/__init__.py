"""Checks of every statement of docs/theory.md; a package, because its files share names with those of other folders."""
