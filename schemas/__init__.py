"""What the data is: pydantic models and Arrow table layouts. Imports pydantic, polars and pyarrow only."""
