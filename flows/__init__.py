"""One file a phase, plus the pipeline that chains them."""
