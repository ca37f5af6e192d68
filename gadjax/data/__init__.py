"""From teacher Parquet to batches: schema, chat templates, the Grain pipeline, packing."""
