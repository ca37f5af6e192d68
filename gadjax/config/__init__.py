"""A run's config: `fields` declares every field, `check` holds the rules, `reference` describes the fields as text."""
