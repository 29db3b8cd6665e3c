"""What of a model under training a checkpoint holds beside the optimizer's partitions, and how it is cut."""
