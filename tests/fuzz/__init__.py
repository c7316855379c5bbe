"""One module per boundary: whatever comes over it, nothing raises, hangs, grows or touches what is not ours."""
