"""A run's folder: what it holds, who may write to it, and what may go on in it."""
