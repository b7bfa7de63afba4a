"""Looking for each method's settings on validation, with an equal budget; see ``docs/search.md``."""
