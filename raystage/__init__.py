"""raystage: staged training on Ray Train and DeepSpeed, with the compute it saves measured."""
