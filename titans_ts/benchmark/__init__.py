"""Commands that measure: every number of README and RESULTS is printed by one of them."""
