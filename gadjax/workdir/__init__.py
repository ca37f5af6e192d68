"""A run's folder: what it holds, who may write to it, and which run may continue in it."""
