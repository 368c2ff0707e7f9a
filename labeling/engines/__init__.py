"""Local inference engines behind one small protocol."""
