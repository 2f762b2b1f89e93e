"""The pipeline: composes the stages on the cluster, and keeps what they make."""
