"""Networks of raystage's own, beside the models of transformers: a table of parameters and a module of torch each."""
