"""The neural memory: torch only, nothing of the rest of the package."""
