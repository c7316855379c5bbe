"""What a trace is: how it is read, written, made and looked at. What a replay does with one is `kvtier.sim`."""
