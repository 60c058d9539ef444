"""What training bought: probes of kept completions."""
