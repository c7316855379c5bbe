"""Contract suites for plugin authors: derive one test class, say how to make the plugin, run pytest."""
