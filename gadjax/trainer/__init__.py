"""The run: set-up, the compiled programs of a stage, the loop over steps, held-out figures."""
