"""Prints the page of all fields: python -m gadjax.config > docs/config.md"""

from gadjax.config.reference import page

print(page(), end="")
