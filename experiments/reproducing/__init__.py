"""The inside of `experiments.reproduce`: the catalogue of papers, arms and seeds, rules and verdicts, tables and figures."""
