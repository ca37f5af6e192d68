"""Plans a run for machines that are not here, by compiling its own programs ahead of time and reading them."""
