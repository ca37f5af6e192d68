"""From a config to what a run needs: networks, data and weights."""
