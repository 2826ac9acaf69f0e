"""What users of a running pipeline hold, and its counterparts in the pipeline."""
