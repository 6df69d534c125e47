"""Reference models, each built twice with the same weights: `pytorch()` and `keras()` in the module of each."""
