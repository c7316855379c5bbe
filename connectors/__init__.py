"""Engines that kvtier serves, one folder each."""
