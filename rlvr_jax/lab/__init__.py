"""Questions asked of models and runs: other ways to elicit, probes, diagnostics and studies."""
