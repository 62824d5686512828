"""The catalogue: one file a paper. Nothing else lists the papers."""
